"""Readings to joules and how far they may be off: pure arithmetic, no hardware, no clock.

Three kinds of source: a counter that is latched every so often, a counter whose latch times are known
(`ticks`), and power that is sampled. docs/windows-and-bounds.md derives the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Bounded:
    """An energy, and how far from the truth it may be, in J."""

    energy_j: float
    bound_j: float


def modular_difference(before: int, after: int, modulus: int) -> int:
    """How far a counter that wraps at `modulus` went, if it wrapped at most once."""
    return (after - before) % modulus


def latched_difference(energy_j: float, *, update_period_s: float, power_cap_w: float) -> Bounded:
    """The difference of two readings of a counter that is latched every `update_period_s`.

    For any phase the error lies between -U P(end) and +U P(start), so +-U times the highest power holds.
    """
    return Bounded(energy_j, update_period_s * power_cap_w)


@dataclass(frozen=True, slots=True)
class PowerSample:
    """Power read at one instant."""

    time_s: float
    power_w: float


def integrate_power(
    samples: Sequence[PowerSample],
    start_s: float,
    end_s: float,
    *,
    update_period_s: float,
    averaging_s: float,
) -> Bounded | None:
    """Energy of sampled power over a window, by trapezoids; None where the samples do not cover it.

    Args:
        samples: in order of time; they may begin before and end after the window.
        start_s: the window's start.
        end_s: the window's end.
        update_period_s: how old a reading may be.
        averaging_s: over what time before its latching the sensor averages.

    The bound holds for power that changes at most once between two samples: between the samples' lower and
    higher power all the time, and at each edge the sensor's lag times the swing of the power.
    """
    inside = [sample for sample in samples if start_s <= sample.time_s <= end_s]
    before = [sample for sample in samples if sample.time_s < start_s][-1:]
    after = [sample for sample in samples if sample.time_s > end_s][:1]
    known = [*before, *inside, *after]
    if not known or end_s <= start_s:
        return None
    points = [
        PowerSample(start_s, _interpolated(known, start_s)),
        *inside,
        PowerSample(end_s, _interpolated(known, end_s)),
    ]
    energy_j = bound_j = 0.0
    for one, two in pairwise(points):
        step_s = two.time_s - one.time_s
        piece_j = step_s * (one.power_w + two.power_w) / 2
        # The change may be anywhere between the samples around the piece: an edge cuts their step in two.
        around_w = [one.power_w, two.power_w]
        if one is points[0]:
            around_w += [sample.power_w for sample in before]
        if two is points[-1]:
            around_w += [sample.power_w for sample in after]
        energy_j += piece_j
        bound_j += max(piece_j - step_s * min(around_w), step_s * max(around_w) - piece_j)
    # A change near an edge may show in the sensor only when it is that much older.
    lag_s = update_period_s + averaging_s
    shown = [sample.power_w for sample in samples if start_s - lag_s <= sample.time_s <= end_s + lag_s]
    beyond = [sample.power_w for sample in samples if sample.time_s > end_s + lag_s][:1]
    powers = [*(sample.power_w for sample in known), *shown, *beyond]
    return Bounded(energy_j, bound_j + 2 * lag_s * (max(powers) - min(powers)))


def longest_gap_s(samples: Sequence[PowerSample], start_s: float, end_s: float) -> float:
    """The longest time inside the window without a sample."""
    times_s = [start_s, *(sample.time_s for sample in samples if start_s < sample.time_s < end_s), end_s]
    return max(two - one for one, two in pairwise(times_s))


def _interpolated(samples: Sequence[PowerSample], time_s: float) -> float:
    if time_s <= samples[0].time_s:
        return samples[0].power_w
    for one, two in pairwise(samples):
        if time_s <= two.time_s:
            share = (time_s - one.time_s) / (two.time_s - one.time_s)
            return one.power_w + share * (two.power_w - one.power_w)
    return samples[-1].power_w
