"""When a latched counter ticks, and what a window used when that is known.

A counter that is latched every U tells the energy at its ticks exactly, and nothing between them. A window
cuts two tick intervals. How the energy of a cut interval divides is known twice, from the power outside the
window next to it and from the power inside: the two answers agree when the power is steady on both sides, and
how far they differ is the bound. docs/windows-and-bounds.md has the derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from pytest_llmenergy.meters.integrate import Bounded

NEAR = 0.1  # of the period: an edge so near to a tick may be on either side of it


@dataclass(frozen=True, slots=True)
class Tick:
    """The counter went to energy_j at time_s +- uncertainty_s."""

    time_s: float
    uncertainty_s: float
    energy_j: float
    is_seen: bool = True  # else its time is that of the phase


class Edge:
    """One end of a window between two ticks of the counter."""

    def __init__(self, time_s: float, energy_j: float, before: list[Tick]) -> None:
        self.time_s = time_s
        self.energy_j = energy_j  # the reading: the counter as the tick before left it
        self._before = [tick for tick in before if tick.energy_j < energy_j and tick.is_seen]
        self._last = next((tick for tick in reversed(before) if tick.energy_j == energy_j), None)
        self.next: Tick | None = None
        self.second: Tick | None = None
        self.third: Tick | None = None
        for tick in before:
            if tick.energy_j > energy_j:
                self.see(tick)  # found between the reading and now

    def see(self, tick: Tick) -> None:
        """Take a tick that was found after the edge was made."""
        if tick.energy_j <= self.energy_j:
            self._last = tick  # it came before the edge, and was found only now
        elif self.next is None:
            self.next = tick
        elif self.second is None:
            self.second = tick
        elif self.third is None:
            self.third = tick

    @property
    def is_settled(self) -> bool:
        """Whether the two ticks after it are known."""
        return self.second is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is wanted: the third is, to see how unsteady the power is, not waited for."""
        return self.third is not None

    def previous_s(self, period_s: float) -> float:
        """When the tick before the edge was."""
        if self.next is None:
            return self.time_s if self._last is None else min(self._last.time_s, self.time_s)
        periods = max(1, math.ceil((self.next.time_s - self.time_s) / period_s - NEAR))
        return min(self.next.time_s - periods * period_s, self.time_s)

    def power_before_w(self, period_s: float, since_s: float = -math.inf) -> float | None:
        """Mean power up to the tick before the edge, over ticks not older than `since_s`."""
        end_s = self.previous_s(period_s)
        for tick in reversed(self._before):
            if tick.time_s < since_s - NEAR * period_s:
                return None
            if end_s - tick.time_s > period_s / 2:
                return (self.energy_j - tick.energy_j) / (end_s - tick.time_s)
        return None

    def unsteadiness_w(self, period_s: float, since_s: float, until_s: float) -> float:
        """How much the power differs between two neighbouring intervals next to the edge, on either side."""
        slack_s = NEAR * period_s
        before = [tick for tick in self._before if tick.time_s >= since_s - slack_s][-3:]
        after = [tick for tick in (self.next, self.second, self.third) if tick is not None]
        after = [tick for tick in after if tick.is_seen and tick.time_s <= until_s + slack_s]
        return max(_change_w(before), _change_w(after))

    def power_after_w(self, until_s: float = math.inf, slack_s: float = 0.0) -> float | None:
        """Mean power between the two ticks after the edge, if they come before `until_s`."""
        if self.next is None or self.second is None or self.second.time_s > until_s + slack_s:
            return None
        if not (self.next.is_seen and self.second.is_seen):
            return None
        return (self.second.energy_j - self.next.energy_j) / (self.second.time_s - self.next.time_s)


def _change_w(ticks: list[Tick]) -> float:
    """The change of power between neighbouring intervals, as far as the ticks' times are sure of it."""
    low_w, high_w = math.inf, 0.0
    for one, two in pairwise(ticks):
        span_s, energy_j = two.time_s - one.time_s, two.energy_j - one.energy_j
        doubt_s = one.uncertainty_s + two.uncertainty_s
        if span_s > doubt_s:
            low_w = min(low_w, energy_j / (span_s - doubt_s))
            high_w = max(high_w, energy_j / (span_s + doubt_s))
    return max(0.0, high_w - low_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CutInterval:
    """A tick interval that a window's edge cuts in two."""

    energy_j: float
    outside_s: float
    inside_s: float
    outside_w: float | None  # mean power next to it, outside the window
    inside_w: float | None  # the same, inside the window
    unsteady_w: float  # change of power from interval to interval close by
    cap_w: float
    uncertainty_s: float

    def outside(self) -> Bounded:
        """What it spent outside the window."""
        low_j = max(0.0, self.energy_j - self.cap_w * (self.inside_s + self.uncertainty_s))
        high_j = max(low_j, min(self.energy_j, self.cap_w * (self.outside_s + self.uncertainty_s)))
        answers = []
        if self.outside_w is not None:
            answers.append(self.outside_w * self.outside_s)
        if self.inside_w is not None:
            answers.append(self.energy_j - self.inside_w * self.inside_s)
        if not answers:
            whole_s = self.outside_s + self.inside_s
            answers.append(self.energy_j * self.outside_s / whole_s if whole_s > 0 else 0.0)
        found_j = min(high_j, max(low_j, sum(answers) / len(answers)))
        extreme_j = max(found_j - low_j, high_j - found_j)
        if self.outside_w is None or self.inside_w is None:
            return Bounded(found_j, extreme_j)
        # Where power jumps close by, it may have jumped on both sides within this one interval too.
        unseen_j = self.unsteady_w * min(self.outside_s, self.inside_s)
        doubt_j = abs(answers[0] - answers[1]) + unseen_j
        doubt_j += self.uncertainty_s * (self.outside_w + self.inside_w)
        return Bounded(found_j, min(extreme_j, doubt_j))


def energy_between(start: Edge, end: Edge, *, period_s: float, cap_w: float) -> Bounded | None:
    """Energy from one edge to another; None where the tick after one of them was not found.

    Args:
        start: the window's start.
        end: the window's end.
        period_s: time between two ticks.
        cap_w: power that is not exceeded; infinite where unknown.
    """
    if start.next is None or end.next is None:
        return None
    before_s = start.time_s - start.previous_s(period_s)
    after_s = max(0.0, end.next.time_s - end.time_s)
    uncertainty_s = max(start.next.uncertainty_s, end.next.uncertainty_s)
    before_w, after_w = start.power_before_w(period_s), end.power_after_w()
    whole_j = end.next.energy_j - start.energy_j
    if end.energy_j == start.energy_j:
        # No tick inside: one interval holds the window whole, and only the power outside tells them apart.
        outside_w = [power_w for power_w in (before_w, after_w) if power_w is not None] or [0.0]
        outside_j = before_s * outside_w[0] + after_s * outside_w[-1]
        inside_s = end.time_s - start.time_s
        low_j = max(0.0, whole_j - cap_w * (before_s + after_s + uncertainty_s))
        high_j = max(low_j, min(whole_j, cap_w * (inside_s + uncertainty_s)))
        found_j = min(high_j, max(low_j, whole_j - outside_j))
        return Bounded(found_j, max(found_j - low_j, high_j - found_j))
    left = _CutInterval(
        energy_j=start.next.energy_j - start.energy_j,
        outside_s=before_s,
        inside_s=max(0.0, start.next.time_s - start.time_s),
        outside_w=before_w,
        inside_w=start.power_after_w(end.time_s, NEAR * period_s),
        unsteady_w=start.unsteadiness_w(period_s, -math.inf, end.time_s),
        cap_w=cap_w,
        uncertainty_s=uncertainty_s,
    ).outside()
    right = _CutInterval(
        energy_j=end.next.energy_j - end.energy_j,
        outside_s=after_s,
        inside_s=end.time_s - end.previous_s(period_s),
        outside_w=after_w,
        inside_w=end.power_before_w(period_s, since_s=start.time_s),
        unsteady_w=end.unsteadiness_w(period_s, start.time_s, math.inf),
        cap_w=cap_w,
        uncertainty_s=uncertainty_s,
    ).outside()
    return Bounded(whole_j - left.energy_j - right.energy_j, left.bound_j + right.bound_j)
