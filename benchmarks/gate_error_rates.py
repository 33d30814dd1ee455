"""How often the gate cries wolf, and what it sees: a seeded Monte Carlo of the gate itself and of its peers.

    python benchmarks/gate_error_rates.py [--runs 1000] [--cells 9] [--processes 2]

Prints, for each noise of the machine, the share of unchanged runs that fail and the share of runs with a true
increase of the printed smallest effect that fail, in each mode; then the same for the rules of other tools.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "doubles"))

from noisy_machine import NoisyMachine, cells

from pytest_llmenergy.analysis.gate import Mode, Rules, RunVerdict, compare_sessions
from pytest_llmenergy.analysis.gate.looks import Looks

if TYPE_CHECKING:
    from pytest_llmenergy.analysis.gate import GateReport
    from pytest_llmenergy.records import Cell

Array = Any  # numpy's; it is imported late

MACHINES = {
    f"trials {trial:.1%}, sessions {session:.0%}": NoisyMachine(trial=trial, session=session)
    for trial in (0.005, 0.01, 0.02)
    for session in (0.0, 0.01, 0.02)
} | {
    "trials 1.0%, drift 3%": NoisyMachine(trial=0.01, drift=0.03),
    "trials 1.0%, 15% spikes of 6%": NoisyMachine(trial=0.01, spike_share=0.15, spike=0.06),
    "all of it, sessions 1%": NoisyMachine(trial=0.01, session=0.01, drift=0.03, spike_share=0.15),
}


@dataclass(frozen=True)
class Task:
    """One estimate of the table."""

    mode: str
    machine: str
    cells: int
    runs: int
    everywhere: float = 0.0
    in_one: float = 0.0


def judge(task: Task, members: list[Cell], draw: random.Random) -> GateReport:
    """One run of the gate, exactly as the commands call it."""
    machine = MACHINES[task.machine]
    change = {"everywhere": task.everywhere, "changes": {members[len(members) // 2]: task.in_one}}
    if task.mode == "ab":
        looks = Looks()
        blocks = machine.blocks(members, draw, blocks=looks.last, trials=3, **change)
        for n in looks.blocks:
            report = looks.judge(blocks[:n], Rules())
            if looks.is_final(report):
                return report
        return report
    whole = {"from_s": 0.0, "to_s": 1.0}
    stored = 10 if task.mode == "history" else 1
    bases = [machine.session_of(members, draw, trials=5, **whole) for _ in range(stored)]
    head = machine.session_of(members, draw, trials=5, **whole, **change)
    return compare_sessions(bases, [head], Rules(), Mode(task.mode))


def simulate(task: Task) -> tuple[float, float, float, float]:
    """The share of runs that fail, and the median smallest effects (grid, cell) and units."""
    members = cells(task.cells)
    failed, effects, cell_effects, units = 0, [], [], []
    for run in range(task.runs):
        draw = random.Random(f"{task}/{run}")
        report = judge(task, members, draw)
        failed += report.verdict is RunVerdict.FAIL
        effects.append(report.smallest_effect)
        cell_effects.append(report.smallest_cell_effect)
        units.append(report.units)
    return (
        failed / task.runs,
        statistics.median(effects),
        statistics.median(cell_effects),
        statistics.fmean(units),
    )


_WIDTHS = (13, 10, 7, 13, 7, 8)


def gate_table(runs: int, n_cells: int, modes: list[str], wanted: str, pool: ProcessPoolExecutor) -> None:
    """The gate's own rates."""
    print(f"\nThe gate, {n_cells} cells, {runs} runs an entry")
    print("  ab: looks after 5 and 10 blocks of 3 trials; history: 10 sessions; sessions: 1 % is assumed")
    columns = ("false alarms", "smallest", "power", "in one cell", "power", "units")
    print(f"  {'machine':32}{'mode':9}" + "".join(f"{c:>{w}}" for c, w in zip(columns, _WIDTHS, strict=True)))
    tasks = [Task(mode, name, n_cells, runs) for name in MACHINES if wanted in name for mode in modes]
    worst: dict[str, tuple[float, float, float]] = {}
    nulls = list(pool.map(simulate, tasks))
    grids = pool.map(
        simulate,
        [replace(task, everywhere=found[1]) for task, found in zip(tasks, nulls, strict=True)],
    )
    ones = pool.map(
        simulate, [replace(task, in_one=found[2]) for task, found in zip(tasks, nulls, strict=True)]
    )
    for task, null, grid, one in zip(tasks, nulls, grids, ones, strict=True):
        print(
            f"  {task.machine:32}{task.mode:9}{null[0]:>13.2%}{null[1]:>10.1%}{grid[0]:>7.3f}"
            f"{null[2]:>13.1%}{one[0]:>7.3f}{null[3]:>8.1f}",
            flush=True,
        )
        if task.mode == "sessions" and "sessions 2%" in task.machine:
            continue  # beyond what the mode assumes, and says
        alarm, power, cell_power = worst.get(task.mode, (0.0, 1.0, 1.0))
        worst[task.mode] = (max(alarm, null[0]), min(power, grid[0]), min(cell_power, one[0]))
    for mode, (alarm, power, cell_power) in worst.items():
        print(
            f"  {mode}: at most {alarm:.2%} false alarms, power at least {power:.3f}, "
            f"in one cell {cell_power:.3f}"
        )


# The rules of other tools, on one cell's trials of one stored session and one new one.


def pytest_benchmark_mean(base: Array, head: Array) -> Array:
    """--benchmark-compare-fail=mean:5%."""
    return head.mean(1) > 1.05 * base.mean(1)


def pyperf_t(base: Array, head: Array) -> Array:
    """Pyperf compare_to: a two-sided pooled t test at 95 %; here the slower half of it."""
    from scipy import stats

    return (stats.ttest_ind(head, base, axis=1).pvalue < 0.05) & (head.mean(1) > base.mean(1))


def asv_rule(base: Array, head: Array) -> Array:
    """Asv continuous: Mann-Whitney p < 0.002, and a ratio above 1.1."""
    return asv_alone(base, head) & (_median(head) > 1.1 * _median(base))


def asv_alone(base: Array, head: Array) -> Array:
    """Asv's test without its factor."""
    from scipy import stats

    return (stats.mannwhitneyu(head, base, axis=1).pvalue < 0.002) & (_median(head) > _median(base))


def welch(base: Array, head: Array) -> Array:
    """Welch's t test, one-sided, p < 0.01."""
    from scipy import stats

    return stats.ttest_ind(head, base, axis=1, equal_var=False, alternative="greater").pvalue < 0.01


def _median(values: Array) -> Array:
    import numpy as np

    return np.median(values, axis=1)


PEERS = {
    "pytest-benchmark mean:5%": pytest_benchmark_mean,
    "pyperf t test": pyperf_t,
    "asv p < .002 and x1.1": asv_rule,
    "asv p < .002 alone": asv_alone,
    "Welch p < 0.01": welch,
}


def peer_table(runs: int) -> None:
    """False alarms and power at +5 % of the rules that take trials for the unit."""
    import numpy as np

    draw = np.random.default_rng(1)

    def session(n: int, shift: float, drift: float) -> Array:
        level = draw.normal(0, shift, (runs, 1)) + math.log1p(drift) * np.linspace(*drift_at, n)
        return np.exp(level + draw.normal(0, 0.01, (runs, n)))

    print(f"\nOther tools' rules, one cell, trial noise 1 %, {runs} runs an entry: share that fails")
    print(f"  {'rule':26}{'sessions':>9}{'n=5':>9}{'n=10':>9}{'n=25':>9}{'+5 %, n=10':>12}")
    for name, rule in PEERS.items():
        for shift in (0.0, 0.01, 0.02):
            drift_at = (0.0, 0.0)
            rates = [rule(session(n, shift, 0), session(n, shift, 0)).mean() for n in (5, 10, 25)]
            power = rule(session(10, shift, 0), 1.05 * session(10, shift, 0)).mean()
            print(f"  {name:26}{shift:>9.0%}" + "".join(f"{r:>9.2%}" for r in rates) + f"{power:>12.2f}")
        rates = []
        for n in (5, 10, 25):
            drift_at = (0.0, 0.5)
            base = session(n, 0.0, 0.03)
            drift_at = (0.5, 1.0)
            rates.append(rule(base, session(n, 0.0, 0.03)).mean())
        print(f"  {name:26}{'3% drift':>9}" + "".join(f"{r:>9.2%}" for r in rates) + f"{'':>12}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--cells", type=int, action="append")
    parser.add_argument("--mode", action="append", choices=list(Mode))
    parser.add_argument("--machine", default="", help="only those whose name holds this")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started_s = time.monotonic()
    with ProcessPoolExecutor(options.processes) as pool:
        for n_cells in options.cells or [9]:
            gate_table(options.runs, n_cells, options.mode or list(Mode), options.machine, pool)
    peer_table(max(2000, options.runs))
    print(f"\n{time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()
