"""What no test may take from, or give to, the shell it is run in."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each changes what pytest or the gate prints, or where it writes.
OUTER = (
    "CI",
    "BUILD_NUMBER",
    "GITHUB_ACTIONS",
    "GITHUB_STEP_SUMMARY",
    "PYTEST_ADDOPTS",
    "FORCE_COLOR",
)


@pytest.fixture(autouse=True, scope="session")
def outer_environment() -> Iterator[None]:
    """Tests see the same variables in a shell and in a CI."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTER:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """What a shell runs in the background ignores Ctrl-C, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
