"""The gate's error rates on machines of known noise: a fast subset of benchmarks/gate_error_rates.py."""

from __future__ import annotations

import random
import statistics

import pytest

from pytest_llmenergy.analysis.gate import Mode, Rules, RunVerdict, Verdict, compare_sessions
from pytest_llmenergy.analysis.gate.looks import Looks
from tests.doubles.noisy_machine import NoisyMachine, cells

GRID = cells(9)
RUNS = 250
MACHINES = {
    "trials 0.5 %": NoisyMachine(trial=0.005),
    "trials 2 %": NoisyMachine(trial=0.02),
    "sessions 1 %": NoisyMachine(trial=0.01, session=0.01),
    "sessions 2 %": NoisyMachine(trial=0.01, session=0.02),
    "drift 3 %": NoisyMachine(trial=0.01, drift=0.03),
    "spikes 15 %": NoisyMachine(trial=0.01, spike_share=0.15, spike=0.06),
}
# 1.5 % of 250 runs is 3.75; more than 9 has a chance of 1 in 200 there.
MOST_FALSE_ALARMS = 9


def by_blocks(machine, draw, **change):
    looks = Looks()
    blocks = machine.blocks(GRID, draw, blocks=looks.last, trials=3, **change)
    reports = (looks.judge(blocks[:n], Rules()) for n in looks.blocks)
    return next(report for report in reports if looks.is_final(report))


def by_history(machine, draw, **change):
    stored = [machine.session_of(GRID, draw, trials=5, to_s=1.0) for _ in range(10)]
    head = machine.session_of(GRID, draw, trials=5, to_s=1.0, **change)
    return compare_sessions(stored, [head], Rules(), Mode.HISTORY)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("judge", [by_blocks, by_history])
def test_the_stated_rates_hold(judge, name):
    """Unchanged runs fail in no more than 1.5 %, and the smallest effect printed is seen in nine of ten."""
    machine = MACHINES[name]
    reports = [judge(machine, random.Random(f"null/{run}")) for run in range(RUNS)]
    alarms = sum(report.verdict is RunVerdict.FAIL for report in reports)
    assert alarms <= MOST_FALSE_ALARMS
    assert all(report.false_alarm_rate <= 0.015 for report in reports)
    effect = statistics.median(report.smallest_effect for report in reports)
    seen = sum(
        judge(machine, random.Random(f"rise/{run}"), everywhere=effect).verdict is RunVerdict.FAIL
        for run in range(RUNS)
    )
    # Below 213 of 250 has a chance of 1 in 100 where the power is 0.9.
    assert seen >= 213


def test_the_unit_is_the_session():
    """The negative control: a test on trials alone calls one in five unchanged runs a regression."""
    from scipy import stats

    machine = MACHINES["sessions 1 %"]
    alarms = 0
    for run in range(RUNS):
        draw = random.Random(f"control/{run}")
        base, head = (machine.session_of(GRID[:1], draw, trials=10).readings[GRID[0]] for _ in range(2))
        test = stats.ttest_ind(head.logs, base.logs, equal_var=False, alternative="greater")
        alarms += test.pvalue < 0.01
    assert alarms / RUNS > 0.10


def test_an_assumed_spread_keeps_its_rate_while_it_holds():
    """Two sessions that differ as assumed raise no more alarms than stated; at twice that they do."""
    rates = {}
    for spread in (0.01, 0.02):
        machine = NoisyMachine(trial=0.01, session=spread)
        failed = 0
        for run in range(RUNS):
            draw = random.Random(f"two/{run}")
            base, head = (machine.session_of(GRID, draw, trials=5) for _ in range(2))
            failed += compare_sessions([base], [head], Rules()).verdict is RunVerdict.FAIL
        rates[spread] = failed
    assert rates[0.01] <= MOST_FALSE_ALARMS
    assert rates[0.02] > 0.06 * RUNS


@pytest.mark.parametrize("n", [5, 9])
def test_what_drifts_within_two_sessions_is_seen_in_a_small_grid_too(n):
    """Drift and spikes shift each cell by itself: each of a few is held against how the others stray."""
    machine = NoisyMachine(trial=0.01, session=0.01, drift=0.03, spike_share=0.15)
    alarms = 0
    for run in range(4 * RUNS):
        draw = random.Random(f"drift/{run}")
        base, head = (machine.session_of(cells(n), draw, trials=5, to_s=1.0) for _ in range(2))
        outcomes = compare_sessions([base], [head], Rules()).cells
        alarms += any(cell.outcome.verdict is Verdict.FAIL for cell in outcomes)
    # The cells' share of the rate is 0.25 %, here 2.5 runs; more than 7 has a chance of 1 in 200.
    assert alarms <= 7


def test_most_comparisons_are_clear_at_the_first_look():
    """On a machine of 1 % noise nearly every unchanged comparison stops after five blocks."""
    machine = NoisyMachine(trial=0.01)
    units = [by_blocks(machine, random.Random(f"stop/{run}")).units for run in range(60)]
    assert statistics.fmean(units) < 5.5
