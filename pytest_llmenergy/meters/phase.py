"""Where the ticks of a regular counter are: intervals that hold them, from looks that may come late.

That a counter had moved between two looks says for sure that it ticked between them, however late the second
came. Ticks that come at even times narrow each other: what one look leaves open, another shuts out.
"""

from __future__ import annotations

import math
from typing import Self

LEAST_JITTER_S = 0.0002  # a tick may be so much off the even times
_CALMING = 0.999  # what is left of a jitter that was found, after each tick that fits
_ANCHOR_S = 20.0  # over so long the period is reckoned
_RELAXING = 1e-6  # how much of the period its limits move apart with each tick: no clock is steady for ever
_LOST = 0.25  # of the period: beyond it a tick's number is not known


class Phase:
    """Limits of the last tick's time and of the period, all in s."""

    def __init__(self, after_s: float, until_s: float, period_s: tuple[float, float]) -> None:
        """A tick lay in (after_s, until_s]; the period lies within its two limits."""
        self.low_s, self.high_s = after_s, until_s
        self._period_low_s, self._period_high_s = period_s
        self._jitter_s = LEAST_JITTER_S
        self._anchor = (after_s, until_s)
        self._count = 0  # ticks since the anchor

    @classmethod
    def of_first(cls, sightings: list[tuple[float, float]]) -> Self:
        """From the first ticks, seen one after the other."""
        count = len(sightings) - 1
        (first_low_s, first_high_s), (low_s, high_s) = sightings[0], sightings[-1]
        made = cls(low_s, high_s, ((low_s - first_high_s) / count, (high_s - first_low_s) / count))
        made._anchor, made._count = sightings[0], count
        return made

    @property
    def period_s(self) -> float:
        """The middle of its limits."""
        return (self._period_low_s + self._period_high_s) / 2

    @property
    def middle_s(self) -> float:
        """The last tick's time."""
        return (self.low_s + self.high_s) / 2

    def due_after(self, time_s: float) -> float:
        """The earliest that the next tick after this time may come."""
        return self._predicted(math.floor((time_s - self.middle_s) / self.period_s) + 1)[0]

    def within(self, after_s: float, until_s: float) -> tuple[float, float]:
        """The limits of the last tick in (after_s, until_s], one having been there."""
        low_s, high_s = until_s, after_s
        newest = math.floor((until_s - self.middle_s) / self.period_s) + 1
        for periods in (newest, newest - 1, newest - 2):
            one_low_s, one_high_s = self._predicted(periods)
            if one_low_s <= until_s and one_high_s > after_s:
                low_s, high_s = min(low_s, max(one_low_s, after_s)), max(high_s, min(one_high_s, until_s))
            if one_high_s <= until_s:
                break  # this one had come for sure: none before it is the last
        return (low_s, high_s) if low_s <= high_s else (after_s, until_s)

    def _predicted(self, periods: int) -> tuple[float, float]:
        limits_s = sorted((periods * self._period_low_s, periods * self._period_high_s))
        return self.low_s + limits_s[0] - self._jitter_s, self.high_s + limits_s[1] + self._jitter_s

    def see(self, after_s: float, until_s: float) -> None:
        """Take one tick that lay in (after_s, until_s]."""
        periods = round(((after_s + until_s) / 2 - self.middle_s) / self.period_s)
        if periods < 1:
            return
        low_s, high_s = self._predicted(periods)
        if high_s - low_s > 2 * _LOST * self.period_s:
            self._restart(after_s, until_s)
            return
        gap_s = max(low_s - until_s, after_s - high_s)
        if gap_s > 0:
            # It was not where even times have it: they are less even than was thought, or the period changed.
            self._jitter_s += 2 * gap_s
            self._period_low_s -= gap_s / periods
            self._period_high_s += gap_s / periods
            self._restart(after_s, until_s)
            return
        self.low_s, self.high_s = max(low_s, after_s), min(high_s, until_s)
        self._jitter_s = max(LEAST_JITTER_S, _CALMING * self._jitter_s)
        self._count += periods
        self._narrow()

    def _restart(self, after_s: float, until_s: float) -> None:
        self.low_s, self.high_s = after_s, until_s
        self._anchor, self._count = (after_s, until_s), 0

    def _narrow(self) -> None:
        """The period lies within what the ticks since the anchor allow."""
        (first_low_s, first_high_s), slack_s = self._anchor, _RELAXING * self.period_s
        low_s = (self.low_s - first_high_s - self._jitter_s) / self._count
        high_s = (self.high_s - first_low_s + self._jitter_s) / self._count
        low_s = max(low_s, self._period_low_s - slack_s)
        high_s = min(high_s, self._period_high_s + slack_s)
        if low_s <= high_s:
            self._period_low_s, self._period_high_s = low_s, high_s
        if self._count * self.period_s > _ANCHOR_S:
            self._anchor, self._count = (self.low_s, self.high_s), 0
