"""What the plugin costs: pytest's start with it over without it, and the share of a campaign that is trials.

    python benchmarks/plugin_cost.py [RUNS]

Both are ratios in one run. With and without take turns, and the least CPU times are compared: what a noisy
machine adds, it adds to both, and never takes away.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1] / "bench"
QUIET = ["-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "no:codspeed", "-p", "no:hypothesispytest"]


def cpu_s(command: list[str], folder: Path) -> float:
    """CPU seconds of a command, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_up(runs: int) -> None:
    """An ordinary pytest run of one empty test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_one.py").write_text("def test_one():\n    pass\n")
        plain = [sys.executable, "-m", "pytest", "-q", *QUIET]
        with_s, without_s = [], []
        for _ in range(runs + 1):  # the first compiles and fills caches
            with_s.append(cpu_s(plain, folder))
            without_s.append(cpu_s([*plain, "-p", "no:llmenergy"], folder))
    least, least_without = min(with_s[1:]), min(without_s[1:])
    print(
        f"start-up with the plugin over without it: {least / least_without:.3f} "
        f"(least CPU time of {runs} each; {1e3 * (least - least_without):.1f} ms more)"
    )


def campaign_share() -> None:
    """The embedded default: how much of it is trials, of the session and of the time cells take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pytest", str(BENCH), "--llm-energy", "--llm-energy-results=out"]
        began_s = time.monotonic()
        subprocess.run(
            [*command, *QUIET],
            cwd=folder,
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        wall_s = time.monotonic() - began_s
        document = json.loads((folder / "out" / "results.json").read_text())
    trials = [trial for cell in document["cells"] for trial in cell["trials"]]
    trials_s = sum(trial["runtime_s"] * trial["repetitions"] for trial in trials)
    cells_s = max(t["started_s"] + t["runtime_s"] * t["repetitions"] for t in trials) - min(
        t["started_s"] for t in trials
    )
    print(f"time in trials over time from the first to the last: {trials_s / cells_s:.3f}")
    print(
        f"time in trials over the whole command:               {trials_s / wall_s:.3f} "
        f"({trials_s:.1f} s of {wall_s:.1f} s, imports and the model's load included)"
    )


if __name__ == "__main__":
    start_up(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
    campaign_share()
