"""A counter followed from tick to tick: energies of windows of any length, and bounds that hold."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmenergy.meters.edges import energy_between
from pytest_llmenergy.meters.integrate import Bounded, latched_difference
from pytest_llmenergy.meters.ticks import TickTracker
from tests.doubles.powercurve import LatchedCounter, ManualScheduler, PowerCurve

CAP_W = 450.0


@dataclass
class Case:
    """A window on a counter of a random machine."""

    truth_j: float
    found: Bounded
    plain: Bounded
    reads: int
    seconds: float


def random_curve(source: random.Random, until_s: float, mean_s: float) -> PowerCurve:
    segments, at_s = [], 0.0
    while at_s < until_s:
        segments.append((at_s, source.uniform(20, 400)))
        at_s += source.expovariate(1 / mean_s)
    return PowerCurve(segments)


def measure(
    source: random.Random,
    curve: PowerCurve,
    period_s: float,
    *,
    start_s: float,
    runtime_s: float,
    late_s: float,
) -> Case:
    """Meter a window; the tasks of the scheduler run up to `late_s` late."""
    scheduler = ManualScheduler(late_s=lambda: source.random() * late_s)
    counter = LatchedCounter(curve, period_s, source.random() * period_s)
    reads = 0

    def read() -> float:
        nonlocal reads
        reads += 1
        return counter.energy_j(scheduler.now_s)

    tracker = TickTracker(read, scheduler.clock)
    scheduler.add(tracker.run)
    scheduler.advance(start_s)
    edges = []
    for wait_s in (0.0, runtime_s):
        scheduler.advance(wait_s)
        edge = tracker.edge()
        assert edge is not None
        scheduler.hasten(tracker.run, tracker.next_look_s)
        edges.append(edge)
    start, end = edges
    scheduler.wait(lambda: end.is_settled, 3 * period_s)
    assert tracker.period_s == pytest.approx(period_s, rel=0.02 if late_s < 0.005 else 0.1)
    found = energy_between(start, end, period_s=tracker.period_s, cap_w=CAP_W)
    assert found is not None
    truth_j = curve.energy_j(end.time_s) - curve.energy_j(start.time_s)
    plain = latched_difference(end.energy_j - start.energy_j, update_period_s=period_s, power_cap_w=CAP_W)
    return Case(truth_j, found, plain, reads, scheduler.now_s)


def is_within(found: Bounded, truth_j: float) -> bool:
    return abs(found.energy_j - truth_j) <= found.bound_j + 0.002  # the counter's own step of 1 mJ, twice


@pytest.mark.parametrize("period_s", [0.02, 0.1])
@pytest.mark.parametrize("mean_s", [0.3, 2.0])
def test_99_of_100_windows_of_any_power_are_within_their_bound(period_s: float, mean_s: float) -> None:
    """Power that jumps at random times to random heights, windows of random length at random times."""
    source = random.Random(f"{period_s}/{mean_s}")
    cases = []
    for _ in range(400):
        runtime_s = 10 ** source.uniform(-1.7, 0.7)
        start_s = source.uniform(3, 6)
        curve = random_curve(source, start_s + runtime_s + 3, mean_s)
        cases.append(measure(source, curve, period_s, start_s=start_s, runtime_s=runtime_s, late_s=0.001))
    assert sum(is_within(case.found, case.truth_j) for case in cases) >= 0.99 * len(cases)
    # The general bound of a counter that is not followed holds always.
    assert all(is_within(case.plain, case.truth_j) for case in cases)
    # And following is worth it: on windows of some ticks the bound is a fraction of the general one.
    assert sum(case.found.bound_j for case in cases) < 0.5 * sum(case.plain.bound_j for case in cases)


@pytest.mark.parametrize(("runtime_s", "error"), [(0.02, 0.05), (0.05, 0.03), (0.3, 0.01), (2.0, 0.002)])
def test_a_window_over_steady_power_reads_true_whatever_its_length(runtime_s: float, error: float) -> None:
    """Work of 300 W over an idle 60 W: at 20 ms a plain reading is off by most of it."""
    source = random.Random(runtime_s)
    errors = []
    for _ in range(60):
        start_s = source.uniform(3, 4)
        curve = PowerCurve([(0, 60), (start_s, 300), (start_s + runtime_s, 60)])
        case = measure(source, curve, 0.1, start_s=start_s, runtime_s=runtime_s, late_s=0.001)
        errors.append(abs(case.found.energy_j / case.truth_j - 1))
        assert is_within(case.found, case.truth_j)
    assert sum(errors) / len(errors) < error


def test_a_window_shorter_than_a_tick_says_how_little_its_bound_tells() -> None:
    """Nothing inside it confirms the power outside it: the value is a good guess, the bound is wide."""
    source = random.Random(1)
    curve = PowerCurve([(0, 60), (4, 300), (4.03, 60)])
    case = measure(source, curve, 0.1, start_s=4, runtime_s=0.03, late_s=0.0)
    assert case.found.bound_j > 0.5 * case.found.energy_j


def test_following_costs_a_few_reads_a_tick() -> None:
    source = random.Random(2)
    case = measure(source, PowerCurve([(0, 100)]), 0.1, start_s=5, runtime_s=60, late_s=0.001)
    assert case.reads < 6 * case.seconds / 0.1 + 500  # the 500: the first ticks are looked for every 2 ms


def test_power_that_jumps_as_often_as_the_counter_ticks_widens_the_bound() -> None:
    """Then it may jump twice within the interval that an edge cuts, where nothing shows it."""
    source = random.Random(7)
    within = 0
    for _ in range(400):
        start_s, runtime_s = source.uniform(3, 6), 10 ** source.uniform(-0.7, 0.7)
        curve = random_curve(source, start_s + runtime_s + 3, 0.1)
        case = measure(source, curve, 0.1, start_s=start_s, runtime_s=runtime_s, late_s=0.001)
        within += is_within(case.found, case.truth_j)
    assert within >= 0.98 * 400


@pytest.mark.parametrize("late_s", [0.005, 0.015])
@pytest.mark.parametrize("period_s", [0.02, 0.1])
def test_99_of_100_windows_are_within_their_bound_also_where_the_looks_come_late(
    period_s: float, late_s: float
) -> None:
    """A busy machine: the thread that looks wakes up to 15 ms late, most of a tick at times."""
    source = random.Random(f"{period_s}/{late_s}")
    cases = []
    for _ in range(200):
        start_s = source.uniform(4, 6)
        curve = random_curve(source, start_s + 4, 1.0)
        runtime_s = source.uniform(0.2, 1)
        cases.append(measure(source, curve, period_s, start_s=start_s, runtime_s=runtime_s, late_s=late_s))
    assert sum(is_within(case.found, case.truth_j) for case in cases) >= 0.99 * len(cases)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("frozen", "fewer than 5 ticks in 6 s"),
        ("uneven", "its ticks do not come at even times"),
        ("fast", "it ticks every 3.0 ms or faster, too fast to follow"),
    ],
)
def test_a_counter_whose_ticks_are_not_even_is_not_followed(kind: str, problem: str) -> None:
    source = random.Random(4)
    times_s = [0.0]
    while times_s[-1] < 30:
        times_s.append(
            times_s[-1] + {"frozen": 1e9, "uneven": source.uniform(0.02, 0.3), "fast": 0.003}[kind]
        )
    scheduler = ManualScheduler()
    tracker = TickTracker(
        lambda: float(sum(time_s <= scheduler.now_s for time_s in times_s[:9999])), scheduler.clock
    )
    scheduler.add(tracker.run)
    scheduler.advance(8)
    assert tracker.problem == problem
    assert tracker.edge() is None


def test_a_tick_that_may_be_either_of_two_tells_no_power() -> None:
    """The look after it came just when the next was due: its time is known to a period, and says so."""
    now_s = 0.0
    tracker = TickTracker(lambda: float((now_s + 0.05) // 0.1), lambda: now_s)
    while now_s < 3.0:
        now_s = tracker.run(now_s)
    assert tracker.ticks[-1].is_seen
    now_s = round((now_s + 0.15) / 0.1) * 0.1 + 0.0501
    tracker.run(now_s)
    last = tracker.ticks[-1]
    assert not last.is_seen
    assert last.uncertainty_s == pytest.approx(0.05, abs=0.005)


def test_a_counter_that_ticks_every_9_ms_is_followed() -> None:
    """Its ticks are kept for less time than its period is learned from."""
    scheduler = ManualScheduler()
    counter = LatchedCounter(PowerCurve([(0, 100)]), 0.009, 0.001)
    tracker = TickTracker(lambda: counter.energy_j(scheduler.now_s), scheduler.clock)
    scheduler.add(tracker.run)
    scheduler.advance(1)
    assert tracker.problem is None
    assert tracker.period_s == pytest.approx(0.009, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0.001, 0.3), st.floats(0, 50)), min_size=5, max_size=40),
    reset=st.integers(0, 39),
)
def test_no_counter_whatever_it_does_gives_a_negative_energy(
    steps: list[tuple[float, float]], reset: int
) -> None:
    """Ticks at any times, of any height, with a reset in between."""
    times_s, energies_j, at_s, energy_j = [0.0], [1000.0], 0.0, 1000.0
    for number, (wait_s, step_j) in enumerate(steps):
        at_s += wait_s
        energy_j = 0.0 if number == reset else energy_j + step_j
        times_s.append(at_s)
        energies_j.append(energy_j)
    scheduler = ManualScheduler()

    def read() -> float:
        index = sum(time_s <= scheduler.now_s for time_s in times_s) - 1
        return energies_j[index]

    tracker = TickTracker(read, scheduler.clock)
    scheduler.add(tracker.run)
    edges = []
    for _ in range(12):
        scheduler.advance(at_s / 10)
        edges.append(tracker.edge())
    for start, end in pairwise(edges):
        if start is not None and end is not None and end.energy_j >= start.energy_j:
            found = energy_between(start, end, period_s=tracker.period_s or 0.1, cap_w=CAP_W)
            assert found is None or (found.energy_j >= -1e-9 and found.bound_j >= 0)
