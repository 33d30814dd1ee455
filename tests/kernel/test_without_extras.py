"""The core without its extras: it works, and a stage that lacks one says which."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.doubles.documents import BY_HAND

if TYPE_CHECKING:
    from pathlib import Path

EXTRAS = (
    "accelerate",
    "highspy",
    "numpy",
    "pandas",
    "polars",
    "pulp",
    "pyarrow",
    "pytest_benchmark",
    "scipy",
    "statsmodels",
    "torch",
    "transformers",
)


def without_extras(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python in which none of the extras' packages can be imported."""
    hide = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["fit", "r.json"], "analysis"),
        (["anova", "r.json"], "analysis"),
        (["route", "--fits", "f.json", "--workload", "w.csv"], "routing"),
    ],
)
def test_a_command_whose_extra_is_missing_says_which(
    tmp_path: Path, arguments: list[str], extra: str
) -> None:
    """Status 2 and one message with the command that helps."""
    for name in ("r.json", "f.json", "w.csv"):
        (tmp_path / name).write_text(json.dumps(BY_HAND))
    done = without_extras(tmp_path, f"from pytest_llmenergy.cli import main\nmain({arguments!r})")
    assert done.returncode == 2, done.stderr
    assert f"pip install 'pytest-llmenergy[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_core_reads_and_prints_results(tmp_path: Path) -> None:
    """`summary` needs no extra."""
    (tmp_path / "r.json").write_text(json.dumps(BY_HAND))
    done = without_extras(tmp_path, "from pytest_llmenergy.cli import main\nmain(['summary', 'r.json'])")
    assert done.returncode == 0, done.stderr
    assert "measured" in done.stdout


def test_the_core_measures_a_callable_and_names_the_extra_of_a_model(tmp_path: Path) -> None:
    """`energy(fn)` works; `energy.cell` of a model fails with one message."""
    (tmp_path / "test_mine.py").write_text(
        "def test_call(energy):\n    energy(sum, range(1000), tokens_out=1)\n"
        "def test_cell(energy):\n    energy.cell(model='tiny-llama', tokens_in=8, tokens_out=8)\n"
    )
    arguments = ["--llm-energy", "--llm-energy-max-trials=2", "-pno:cacheprovider", "-pno:benchmark"]
    arguments += ["-pno:hypothesispytest", "-pno:anyio", "-pno:codspeed", "-pno:xdist"]
    done = without_extras(tmp_path, f"import pytest\nsys.exit(pytest.main({arguments!r}))")
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("pip install 'pytest-llmenergy[models]'") == 1
    assert "Traceback" not in done.stdout
