"""The stopping rule of section 5.1.3, with Student's t."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy.campaign.stopping import StopRule


def trials_until_stop(rule: StopRule, runtimes_s: list[float], energies_j: list[float | None]) -> int:
    for n in range(1, len(runtimes_s) + 1):
        if rule.decide(runtimes_s[:n], energies_j[:n]) is not None:
            return n
    raise AssertionError("the rule never stopped")


def test_steady_trials_stop_at_the_least_number() -> None:
    """Both rules hold as soon as they are asked, and the record names both."""
    stop = StopRule().decide([1.0, 1.001, 0.999, 1.0, 1.0], [10.0, 10.01, 9.99, 10.0, 10.0])
    assert stop is not None
    assert (stop.reason, stop.trials) == ("runtime+energy", 5)
    assert stop.runtime_half_width_s == pytest.approx(0.00088, abs=2e-5)


def test_wild_trials_stop_at_the_cap_and_say_so() -> None:
    """25 trials and no interval narrow enough."""
    noise = random.Random(1)
    runtimes_s = [10 + noise.gauss(0, 5) for _ in range(25)]
    rule = StopRule(ci_rel=None)
    assert trials_until_stop(rule, runtimes_s, [None] * 25) == 25
    stop = rule.decide(runtimes_s, [None] * 25)
    assert stop is not None
    assert (stop.reason, stop.energy_half_width_rel) == ("max-trials", None)
    assert stop.runtime_half_width_s > 0.5


def test_the_rule_that_held_last_is_named() -> None:
    """Runtime was narrow from the start; the energy's interval is what was waited for."""
    energies_j: list[float | None] = [10.0, 11.0, 9.5, 10.5, 10.0]
    rule = StopRule(ci_rel=0.05)
    while rule.decide([1.0] * len(energies_j), energies_j) is None:
        energies_j.append(10.2)
    stop = rule.decide([1.0] * len(energies_j), energies_j)
    assert stop is not None
    assert stop.reason == "energy"
    assert stop.energy_half_width_rel <= 0.05


def test_a_rule_that_is_off_is_not_waited_for() -> None:
    """With no energy rule, wild energies do not matter."""
    stop = StopRule(ci_rel=None).decide([1.0] * 5, [1.0, 100.0, 3.0, 50.0, 7.0])
    assert stop is not None
    assert stop.reason == "runtime"


def test_unknown_energy_switches_the_energy_rule_off() -> None:
    """A rule on what nobody knows would run to the cap for nothing."""
    stop = StopRule().decide([1.0] * 5, [1.0, None, 1.0, 1.0, 1.0])
    assert stop is not None
    assert (stop.reason, stop.energy_half_width_rel) == ("runtime", None)


def test_without_any_rule_the_least_number_of_trials_is_run() -> None:
    """Both rules off: a fixed number of trials."""
    rule = StopRule(ci_abs_s=None, ci_rel=None, min_trials=3)
    assert rule.decide([1.0, 9.0], [None, None]) is None
    assert rule.decide([1.0, 9.0, 4.0], [None] * 3).reason == "min-trials"


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 1e4)), min_size=30, max_size=30),
    st.integers(2, 8),
    st.integers(8, 30),
)
def test_the_number_of_trials_is_between_its_bounds(
    trials: list[tuple[float, float]], low: int, high: int
) -> None:
    """Whatever the trials, never fewer than the least and never more than the most."""
    runtimes_s, energies_j = [t for t, _ in trials], [e for _, e in trials]
    stopped = trials_until_stop(StopRule(min_trials=low, max_trials=high), runtimes_s, list(energies_j))
    assert low <= stopped <= high


def test_the_interval_covers_about_as_often_as_facts_say() -> None:
    """Sd 0.5 s: 95 % stated, 93 to 96 % found after optional stopping; Student's t, not the normal's."""
    noise = random.Random(7)
    rule = StopRule(ci_rel=None)
    covered = 0
    runs = 600
    for _ in range(runs):
        runtimes_s: list[float] = []
        stop = None
        while stop is None:
            runtimes_s.append(10 + noise.gauss(0, 0.5))
            stop = rule.decide(runtimes_s, [None] * len(runtimes_s))
        covered += abs(sum(runtimes_s) / len(runtimes_s) - 10) <= stop.runtime_half_width_s
    assert 0.92 <= covered / runs <= 0.97
