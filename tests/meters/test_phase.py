"""Where the ticks of a regular counter are."""

from __future__ import annotations

import math
import random

import pytest

from pytest_llmenergy.meters.phase import Phase


def followed(source: random.Random, *, period_s: float, late_s: float, jitter_s: float = 0.0) -> list[float]:
    """Follow 400 ticks by looks that come late; how far each was from the middle of its limits, over them."""
    ticks_s = [0.3 + number * period_s + source.uniform(-jitter_s, jitter_s) for number in range(400)]
    sightings = [
        (at_s - source.uniform(0, 0.002), at_s + source.uniform(0, 0.002 + late_s)) for at_s in ticks_s
    ]
    phase = Phase.of_first(sightings[:6])
    off = []
    for at_s, sighting in zip(ticks_s[6:], sightings[6:], strict=True):
        phase.see(*sighting)
        off.append(abs(at_s - phase.middle_s) / ((phase.high_s - phase.low_s) / 2 + 1e-12))
    assert phase.period_s == pytest.approx(period_s, rel=0.01)
    return off


@pytest.mark.parametrize("period_s", [0.02, 0.1])
@pytest.mark.parametrize("late_s", [0.0, 0.008])
def test_a_regular_tick_is_within_its_limits_always(period_s: float, late_s: float) -> None:
    source = random.Random(f"{period_s}/{late_s}")
    for _ in range(20):
        assert max(followed(source, period_s=period_s, late_s=late_s)) <= 1 + 1e-6


def test_ticks_that_are_not_quite_even_widen_the_limits() -> None:
    """A driver's timer is off by up to 2 ms: most ticks are within the limits still, if not all."""
    source = random.Random(5)
    late = [
        value
        for _ in range(20)
        for value in followed(source, period_s=0.1, late_s=0.0, jitter_s=0.002)[100:]  # once it is known
    ]
    assert sum(value <= 1 for value in late) >= 0.95 * len(late)


def test_looks_that_come_late_narrow_each_others_limits() -> None:
    """Every late look leaves milliseconds open; many together do not."""
    source = random.Random(6)
    sightings = [
        (0.1 * n - source.uniform(0, 0.002), 0.1 * n + source.uniform(0, 0.012)) for n in range(1, 100)
    ]
    phase = Phase.of_first(sightings[:6])
    for sighting in sightings[6:]:
        phase.see(*sighting)
    assert phase.high_s - phase.low_s < 0.004
    assert phase.low_s <= 9.9 <= phase.high_s


def test_where_two_ticks_may_have_been_the_last_the_limits_hold_both() -> None:
    """Looked at just when one is due, a counter that moved may have moved then or a period before."""
    phase = Phase(0.999, 1.001, (0.0999, 0.1001))
    low_s, high_s = phase.within(1.45, 1.6)
    assert (low_s, high_s) == (pytest.approx(1.5, abs=0.002), 1.6)
    low_s, high_s = phase.within(1.45, 1.65)
    assert (low_s + high_s) / 2 == pytest.approx(1.6, abs=0.001)
    assert high_s - low_s < 0.005


def test_a_tick_far_from_where_it_was_due_starts_anew() -> None:
    """The driver was busy for a while, or its timer was set again."""
    phase = Phase(0.999, 1.001, (0.0999, 0.1001))
    phase.see(1.138, 1.14)
    assert (phase.low_s, phase.high_s) == (1.138, 1.14)
    assert math.isclose(phase.period_s, 0.1, rel_tol=0.01)


@pytest.mark.parametrize("jitter_s", [0.0, 0.0001])
def test_a_tick_is_within_its_limits_for_long_though_no_clock_is_steady(jitter_s: float) -> None:
    """The period grows by 100 ppm and goes back; the limits stay narrow."""
    source = random.Random(8)
    ticks_s = [0.0]
    for number in range(20_000):
        period_s = 0.02 * (1 + 1e-4 * math.sin(number / 3000))
        ticks_s.append(ticks_s[-1] + period_s)
    off_s = [source.uniform(-jitter_s, jitter_s) for _ in ticks_s]
    true_s = [at_s + one_s for at_s, one_s in zip(ticks_s, off_s, strict=True)]
    sightings = [(at_s - source.uniform(0, 0.002), at_s + source.uniform(0, 0.002)) for at_s in true_s]
    phase = Phase.of_first(sightings[:6])
    outside, widths_s = 0, []
    for at_s, sighting in zip(true_s[6:], sightings[6:], strict=True):
        phase.see(*sighting)
        outside += not phase.low_s - 1e-9 <= at_s <= phase.high_s + 1e-9
        widths_s.append(phase.high_s - phase.low_s)
    assert outside <= 0.001 * len(widths_s)
    assert sum(widths_s) / len(widths_s) < 0.0015  # the looks leave 2 ms open


def test_after_a_pause_in_which_ticks_cannot_be_counted_nothing_is_learned_of_the_period() -> None:
    """100 periods of 99.2 ms would be 99 of 100.2 ms, and the ticks after them come before that."""
    phase = Phase(0.999, 1.001, (0.099, 0.101))
    phase.see(10.919, 10.921)
    assert phase.due_after(11.05) <= 10.92 + 2 * 0.0992
