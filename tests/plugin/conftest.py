"""A project that measures on a simulated machine whose true energies are known."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

# pytester forgets what was first imported inside a run: a second copy of an enum equals nothing, and numpy
# refuses to be loaded twice.
import pytest_llmenergy.backends.replay
import pytest_llmenergy.meters.replay
import pytest_llmenergy.plugin.session
import pytest_llmenergy.report.tables  # noqa: F401

BENCH = Path(__file__).parents[2] / "bench"

REPLAY = """
schema = "llmenergy.replay/1"
seed = 3
{extra}
[[models]]
name = "m-one"
max_tokens = 100
runtime_s = {{ step = 0.01, token_pass = 0.0001 }}
[models.energy_j]
"gpu:0" = {{ step = 2.0, token_pass = 0.01 }}
"cpu:package-0" = {{ step = 0.5 }}
[[models]]
name = "m-two"
runtime_s = {{ step = 0.02 }}
[models.energy_j]
"gpu:0" = {{ step = 4.0 }}
"""

for _name in ("numpy", "scipy.special", "scipy.stats"):
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(_name)

QUIET = ("-pno:benchmark", "-pno:codspeed")
LOUD = ("-Wignore::ResourceWarning",)  # pytest-benchmark 5.2 leaves its JSON file open


class Project:
    """A pytester with a replay file and ways to run and read."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.replay()

    def replay(self, extra: str = "") -> None:
        """Write the replay file; `extra` is TOML before its models."""
        (self.pytester.path / "replay.toml").write_text(REPLAY.format(extra=extra))

    def bench(self) -> str:
        """The real bench files, copied in."""
        folder = self.pytester.path / "bench"
        folder.mkdir(exist_ok=True)
        for path in BENCH.glob("test_*.py"):
            (folder / path.name).write_text(path.read_text())
        return "bench"

    def run(self, *args: str, measuring: bool = True, benchmark: bool = False) -> pytest.RunResult:
        """Run pytest in this process; without neighbours that only cost time, unless they are asked for."""
        switches = ("--llm-energy", "--llm-energy-meters", "replay:replay.toml", "--llm-energy-results=out")
        others = ("-pno:cacheprovider", "-pno:hypothesispytest", *(LOUD if benchmark else QUIET))
        args = (*others, *(switches if measuring else ()), *args)
        return self.pytester.runpytest_inprocess(*args, no_reraise_ctrlc=True)

    def results(self, folder: str = "out") -> dict[str, Any]:
        """The results document."""
        document: dict[str, Any] = json.loads((self.pytester.path / folder / "results.json").read_text())
        return document

    def journal(self) -> Path:
        """The journal."""
        return self.pytester.path / "out" / "journal.jsonl"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of its own, that does not see that we may run under pytest-xdist ourselves."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)
