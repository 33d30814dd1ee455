"""The main job on this machine: real processes, a real (tiny) model, whatever meters there are."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
TINY = ("--llm-energy", "--llm-energy-batch-size=2", "--llm-energy-max-trials=5", "--llm-energy-results=out")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(BENCH), *TINY, *args]


def environment() -> dict[str, str]:
    hidden = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def results(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return document


def test_a_tiny_model_is_measured_with_what_this_machine_has(tmp_path: Path) -> None:
    """Exact tokens, energy that is positive and says where it comes from, a table."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("the models extra is not installed")
    grid = ("--llm-energy-tokens-in=8", "--llm-energy-tokens-out=4,8")
    done = subprocess.run(
        command(*grid), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = results(tmp_path)
    assert {(c["tokens_in"], c["tokens_out"]) for c in document["cells"]} == {(8, 4), (8, 8)}
    for cell in document["cells"]:
        assert {trial["tokens_generated"] for trial in cell["trials"]} == {2 * cell["tokens_out"]}
        assert cell["summary"]["provenance"] in {"measured", "estimated"}
        assert cell["summary"]["energy_j_per_token"] > 0
    (model,) = document["models"]
    assert (model["model"], model["parameters"]) == ("tiny-llama", 164_672)
    assert document["environment"]["cpu_model"]
    assert document["environment"]["libraries"]["torch"]
    assert "tiny-llama (the default; choose with --models)" in done.stdout
    assert "energy of LLM inference" in done.stdout


SLOW_REPLAY = """
schema = "llmenergy.replay/1"
[[models]]
name = "slow"
runtime_s = { step = 0.01 }
energy_j = { "gpu:0" = { step = 1.0 } }
"""


def begin(folder: Path, *args: str) -> subprocess.Popen[str]:
    """A campaign of 81 cells; with `-pslowed` it takes 8 s more, for real: each test sleeps."""
    (folder / "replay.toml").write_text(SLOW_REPLAY)
    (folder / "slowed.py").write_text("import time\ndef pytest_runtest_teardown():\n    time.sleep(0.1)\n")
    replay = ("--models=slow", "--llm-energy-meters=replay:replay.toml", "--llm-energy-grid=paper-grid")
    return subprocess.Popen(
        command(*replay, f"--rootdir={folder}", *args),
        cwd=folder,
        env={**environment(), "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_cells(folder: Path, least: int) -> None:
    journal = folder / "out" / "journal.jsonl"
    for _ in range(600):
        if journal.exists() and journal.read_text().count('"event":"cell"') >= least:
            return
        time.sleep(0.05)
    raise AssertionError("no cell was measured in 30 s")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_batch_systems_sigterm_ends_in_order(tmp_path: Path, how: signal.Signals) -> None:
    """Results are written, marked incomplete; the status is that of an interrupt."""
    process = begin(tmp_path, "-pslowed")
    wait_for_cells(tmp_path, 3)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    document = results(tmp_path)
    assert document["complete"] is False
    assert 3 <= len(document["cells"]) < 81


def test_a_sigkill_loses_at_most_the_line_being_written(tmp_path: Path) -> None:
    """No results document, but a journal; resuming measures only what is missing."""
    process = begin(tmp_path, "-pslowed")
    wait_for_cells(tmp_path, 3)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "out" / "results.json").exists()
    before = (tmp_path / "out" / "journal.jsonl").read_text().count('"event":"cell"')
    resumed = begin(tmp_path, "--llm-energy-resume")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert f"resuming: {before} cells were measured before" in output
    assert results(tmp_path)["complete"] is True
    assert len(results(tmp_path)["cells"]) == 81
