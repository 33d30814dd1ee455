"""`llmenergy-report ab`, run as a person runs it, on the simulated machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench" / "test_token_grid.py"
PYTEST = ("test_token_grid.py", "-pno:cacheprovider", "-ppytest_llmenergy.plugin")
REPLAY = """
schema = "llmenergy.replay/1"
seed = 5
noise = { trial = 0.004, session = 0.003 }
[[models]]
name = "m7b"
runtime_s = { constant = 0.02, step = 0.001, token_pass = 1e-6 }
[models.energy_j]
"gpu:0" = { constant = 5.0, step = 0.3, token_pass = 5e-4 }
[models.kv_energy_j]
"gpu:0" = { constant = 5.0, step = 0.15, token_pass = 5e-4 }
"""
RISE = """
[[changes]]
tokens_in = {}
tokens_out = {}
energy = 1.05
"""
# A run that dies where the test says, as one that the machine kills.
CONFTEST = """
import os
if os.environ.get("DIE_AT") == os.environ.get("LLMENERGY_REPLAY_SESSION"):
    os._exit(9)
"""


class Checkout:
    """A project under git with bench files and a simulated machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "test_token_grid.py").write_text(BENCH.read_text())
        (path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
        (path / "conftest.py").write_text(CONFTEST)
        (path / "replay.toml").write_text(REPLAY)

    def git(self, *arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=self.path, check=True, capture_output=True)

    def commit(self, **files):
        for name, content in files.items():
            (self.path / name.replace("__", ".")).write_text(content)
        if not (self.path / ".git").exists():
            self.git("init", "-q")
        self.git("add", "-A")
        self.git("commit", "-qm", "change")

    def command(self, *options, grid=("8,16", "8,16"), meters=("--llm-energy-meters=replay:replay.toml",)):
        run = "from pytest_llmenergy.cli import main; main()"
        axes = (f"--llm-energy-tokens-in={grid[0]}", f"--llm-energy-tokens-out={grid[1]}")
        return [
            *(sys.executable, "-c", run, "ab", "--looks", "3", "--trials", "2", *options),
            *("--", *PYTEST, "--models=m7b", "--llm-energy-grid=paper-grid", *axes, *meters),
        ]

    def environment(self, **extra):
        paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GITHUB_", "PYTEST_", "COV", "LLMENERGY"))
        }
        # Without the other plugins, whose import is most of what a short run costs.
        return {**clean, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **extra}

    def ab(self, *options, environment=None, **kwargs):
        return subprocess.run(
            self.command(*options, **kwargs),
            cwd=self.path,
            env=self.environment(**(environment or {})),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


AXIS = "8,16,32,64,128,256,512,1024,2048"


def test_one_cell_of_81_is_found_and_a_lost_one_told(checkout):
    """Between two commits, a true +5 % in one cell fails it alone, and a cell that is gone is told."""
    checkout.commit()
    lost = BENCH.read_text().replace(
        "energy.cell(", "None if (tokens_in, tokens_out) == (16, 8) else energy.cell("
    )
    checkout.commit(replay__toml=REPLAY + RISE.format(64, 128), test_token_grid__py=lost)
    done = checkout.ab("--base=HEAD~1", "--head=HEAD", "--json=ab.json", grid=(AXIS, AXIS))
    assert done.returncode == 1, done.stderr
    report = json.loads((checkout.path / "ab.json").read_text())
    found = {
        verdict: [(c["tokens_in"], c["tokens_out"]) for c in report["cells"] if c["verdict"] == verdict]
        for verdict in ("fail", "not-measured", "pass")
    }
    assert found["fail"] == [(64, 128)]
    assert found["not-measured"] == [(16, 8)]
    assert len(found["pass"]) == 79
    assert report["mode"] == "ab"
    assert "not-measured  m7b in 16 out 8 batch 32 no-kv: gone from the head" in done.stdout
    assert "False alarms: at most 1.25 % of runs" in done.stdout
    assert "Smallest effect" in done.stdout


def test_no_change_passes_and_is_not_measured_twice(checkout):
    """Equal commits pass; the same command again reads what was measured, and no worktree is left."""
    checkout.commit()
    checkout.commit(README="a word more")
    shim = f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"\\n' > py && chmod +x py && echo x >> ../times"
    options = ("--base=HEAD~1", "--head=HEAD", "--setup", shim, "--python=py")
    first = checkout.ab(*options)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "PASS: 4 pass" in first.stdout
    assert "measured before" not in first.stderr
    (times,) = (checkout.path / ".llmenergy" / "ab").glob("*/worktrees/times")
    assert times.read_text() == "x\nx\n"
    again = checkout.ab(*options)
    assert again.stdout == first.stdout
    assert again.stderr.count("measured before") == 6
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=checkout.path, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1


def test_a_comparison_that_died_or_was_interrupted_goes_on(checkout):
    """A run that dies is named with its log, Ctrl-C says where it stopped; the same command goes on."""
    checkout.commit()
    checkout.commit(README="a word more")
    arms = ("--base=HEAD~1", "--head=HEAD")
    died = checkout.ab(*arms, environment={"DIE_AT": "0/0/head"})
    assert died.returncode == 2
    assert "block 1, head: pytest ended with status 9" in died.stderr
    assert "Traceback" not in died.stderr
    process = subprocess.Popen(
        checkout.command(*arms),
        cwd=checkout.path,
        env=checkout.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if line.startswith("block 2"):
            os.killpg(process.pid, signal.SIGINT)
            break
    _, rest = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "interrupted after 2 of 6 runs; the same command goes on" in rest
    again = checkout.ab(*arms)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("measured before") == 2
    assert "PASS: 4 pass" in again.stdout


def test_two_settings_of_one_checkout(checkout):
    """Without git: a KV cache off against on is compared cell by cell, across the setting that differs."""
    done = checkout.ab("--base-args=--llm-energy-kv-cache", "--head-args=--llm-energy-no-kv-cache")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Compared across kv_cache: base True, head False." in done.stdout
    assert "FAIL: 4 fail" in done.stdout


OTHER_CELLS = ("--base-args=--llm-energy-tokens-in=8,16", "--head-args=--llm-energy-tokens-in=32,64")


def test_a_head_that_measures_other_cells_stops_after_one_block(checkout):
    """Nothing in common: no more blocks are measured, and the status is 1."""
    done = checkout.ab(*OTHER_CELLS)
    assert done.returncode == 1, done.stderr
    assert "NOTHING-COMPARED" in done.stdout
    assert "block 2" not in done.stderr


@pytest.mark.slow
def test_other_requirements_get_an_environment_of_their_own(checkout):
    """Where the commits ask for other packages, each worktree has its own interpreter, ours behind it."""
    where = "import sys\n\ndef pytest_report_header():\n    return 'prefix ' + sys.prefix\n"
    checkout.commit(requirements__txt="click>=8\n", conftest__py=where)
    checkout.commit(requirements__txt="click>=8.1\n")
    done = checkout.ab("--base=HEAD~1", "--head=HEAD", "--keep-worktrees", *OTHER_CELLS)
    assert done.returncode == 1, done.stdout + done.stderr
    folder = next((checkout.path / ".llmenergy" / "ab").glob("*/plan.json")).parent
    for arm in ("base", "head"):
        log = (folder / "block-01" / arm / "pytest.log").read_text()
        assert f"prefix {folder / 'worktrees' / arm / '.llmenergy-venv'}" in log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "base and head are the same"),
        (("--base=nowhere",), "git knows no revision 'nowhere'"),
        (("--base=HEAD~1", "--looks=2"), "looks after [2] blocks make no sense"),
        (("--base=HEAD~1", "--python=absent/python"), "there is no"),
        (("--base=HEAD~1", "--setup=false"), "the set-up command failed"),
    ],
)
def test_bad_requests_end_before_anything_is_measured(checkout, options, words):
    """Status 2, one message, nothing run."""
    checkout.commit()
    checkout.commit(README="a word more")
    done = checkout.ab(*options)
    assert done.returncode == 2
    assert words in done.stderr
    assert "block 1" not in done.stderr
    assert "Traceback" not in done.stderr
