"""Without the analysis extra, or a part of it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.doubles.scripted import scripted

if TYPE_CHECKING:
    from pathlib import Path

RUN = "import sys; sys.modules[sys.argv[1]] = None; from pytest_llmenergy.cli import main; main(sys.argv[2:])"


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("polars", "import"),
        ("polars", "fit"),
        ("numpy", "fit"),
        ("scipy", "fit"),
        ("polars", "anova"),
        ("statsmodels", "anova"),
        ("pandas", "anova"),
    ],
)
def test_a_command_says_which_extra_it_lacks(tmp_path: Path, package: str, command: str) -> None:
    """Status 2 and the pip command, no traceback."""
    path = scripted(tmp_path / "results.json", grid=[(8, 8), (8, 64), (64, 8), (64, 64)])
    more = ["-o", str(tmp_path / "out.json")] if command == "import" else []
    done = subprocess.run(
        [sys.executable, "-c", RUN, package, command, str(path), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"needs the package {package!r}" in done.stderr
    assert "pip install 'pytest-llmenergy[analysis]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_nothing_heavy() -> None:
    """The commands' help is there before the packages are."""
    code = (
        "import sys; from pytest_llmenergy.cli import group;"
        "[group.get_command(None, name).get_help(__import__('click').Context(group.get_command(None, name)))"
        " for name in ('import', 'fit', 'anova')];"
        "print(sorted({'numpy', 'polars', 'scipy', 'pandas', 'statsmodels'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
