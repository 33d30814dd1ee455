"""Finding a latched counter's ticks, with few reads."""

from __future__ import annotations

import math
import threading
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.edges import Edge, Tick

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.002  # how finely a tick is looked for
_WATCH_S = 0.25  # how often ticks are followed while no window has an open edge
_LEARN_TICKS = 5
_LEARN_S = 0.4
_SURE_S = 1.0  # over so long the period is known better than from the first ticks
_LONGEST_PERIOD_S = 1.0
_SHORTEST_PERIOD_S = 0.008
_LEAD_S = 0.004  # how long before a tick is due it is looked for
_SMOOTHING = 0.4
_ANCHOR_S = 20.0
_JITTER = 0.25  # of the period: beyond it the ticks are not regular


class TickTracker:
    """Follows a counter's ticks: learns their period, then looks shortly before and after each is due.

    Call `run` when it asks to be called; `edge` marks a window's start or end. A few reads a tick, never a
    spin: polling some counters too fast makes them lose energy.
    """

    def __init__(self, read_j: Callable[[], float]) -> None:
        self.period_s: float | None = None
        self.problem: str | None = None  # why the ticks cannot be followed
        self._read_j = read_j
        self._lock = threading.Lock()  # edges are made in one thread, ticks found in another
        self._ticks: deque[Tick] = deque(maxlen=40)
        self._edges: list[Edge] = []
        self._seen: tuple[float, float] | None = None  # when, what
        self._began_s: float | None = None
        self._anchor: Tick | None = None  # the tick that the period is reckoned from, and how many came since
        self._count = 0
        self._phase_s: float | None = None  # the time of the last tick seen, smoothed
        self._precise: Tick | None = None  # the last tick that was seen within a look or two
        self._due_s = 0.0  # of the tick that is looked for

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """The last ticks."""
        return tuple(self._ticks)

    @property
    def _early_s(self) -> float:
        return max(_LEAD_S, 0.1 * (self.period_s or 0.0))

    @property
    def is_following(self) -> bool:
        """Whether the ticks are known."""
        return self.period_s is not None and self.problem is None and bool(self._ticks)

    def edge(self, now_s: float, energy_j: float) -> Edge | None:
        """Mark an edge at this reading; None while the ticks are not known."""
        with self._lock:
            if not self.is_following:
                return None
            edge = Edge(now_s, energy_j, list(self._ticks))
            self._edges.append(edge)
            self._due_s = min(self._due_s, self._predicted_after(now_s))
        return edge

    def next_due_s(self, now_s: float) -> float:
        """When to look for the tick after an edge that was just made."""
        with self._lock:
            return self._predicted_after(now_s) - self._early_s if self._ticks else now_s

    def run(self, now_s: float) -> float:
        """Look once; when to look again."""
        energy_j = self._read_j()
        with self._lock:
            return self._looked(now_s, energy_j)

    def _looked(self, now_s: float, energy_j: float) -> float:
        seen, self._seen = self._seen, (now_s, energy_j)
        if self._began_s is None:
            self._began_s = now_s
        if self.problem is not None:
            return now_s + _LONGEST_PERIOD_S
        if seen is not None and energy_j < seen[1]:
            self._ticks.clear()
            self._edges.clear()
            self._anchor = self._precise = self._phase_s = None
        elif seen is not None and energy_j > seen[1]:
            self._found(seen[0], now_s, energy_j)
        if self.period_s is None:
            self._learn(now_s)
            return now_s + _POLL_S
        if not self._ticks:
            return now_s + _POLL_S
        if now_s > self._due_s + self.period_s / 2:
            self._due_s = self._predicted_after(now_s)
        # A first look in good time, should the next come late.
        for lead_s in (self._early_s, _LEAD_S):
            if now_s + _POLL_S < self._due_s - lead_s:
                return self._due_s - lead_s
        return now_s + _POLL_S

    def _predicted_after(self, now_s: float) -> float:
        assert self.period_s is not None
        last_s = self._ticks[-1].time_s if self._phase_s is None else self._phase_s
        return last_s + (math.floor((now_s - last_s) / self.period_s) + 1) * self.period_s

    def _found(self, seen_s: float, now_s: float, energy_j: float) -> None:
        """The counter ticked between two looks."""
        middle_s, half_s = (seen_s + now_s) / 2, (now_s - seen_s) / 2
        tick = Tick(middle_s, half_s, energy_j, is_seen=half_s <= 2 * _POLL_S)
        if self.period_s is None or self._precise is None:
            if tick.is_seen:
                self._reckon(tick)
        else:
            located_s = self._predicted_after(now_s + _LEAD_S) - self.period_s
            is_one = 2 * half_s < self.period_s / 2
            if located_s >= seen_s - _LEAD_S:
                # The looks may come late, by the interpreter's lock say: the phase knows better than they do.
                doubt_s = min(half_s, _LEAD_S if is_one else max(_LEAD_S, self.period_s / 2))
                tick = Tick(min(max(located_s, seen_s), now_s), doubt_s, energy_j, is_seen=is_one)
            if is_one:
                self._reckon(Tick(middle_s, half_s, energy_j))
        self._ticks.append(tick)
        for edge in self._edges:
            edge.see(tick)
        self._edges = [edge for edge in self._edges if not edge.is_settled]
        if self.period_s is not None and tick.is_seen:
            stride = 1 if self._edges else max(1, round(_WATCH_S / self.period_s))
            # From half a period on: what was found a little before it was expected is not looked for again.
            self._due_s = (
                self._predicted_after(tick.time_s + self.period_s / 2) + (stride - 1) * self.period_s
            )
        elif self.period_s is not None:
            self._due_s = self._predicted_after(now_s)

    def _reckon(self, tick: Tick) -> None:
        """Take the period over all ticks since the anchor: one interval is known to a few ms only."""
        last, self._precise = self._precise, tick
        if self.period_s is None or last is None:
            return
        if self._anchor is None:
            self._anchor, self._count = last, 0
        periods = max(1, round((tick.time_s - last.time_s) / self.period_s))
        self._count += periods
        expected_s = (last.time_s if self._phase_s is None else self._phase_s) + periods * self.period_s
        # A tick between two looks far apart tells less of the phase.
        weight = (
            _SMOOTHING * min(1.0, (_POLL_S / tick.uncertainty_s) ** 2) if tick.uncertainty_s else _SMOOTHING
        )
        self._phase_s = expected_s + weight * (tick.time_s - expected_s)
        if self._count * self.period_s > _SURE_S:
            self.period_s = (tick.time_s - self._anchor.time_s) / self._count
        if self._count * self.period_s > _ANCHOR_S:
            self._anchor = None

    def _learn(self, now_s: float) -> None:
        """Take the period from the first ticks, if they come at even times."""
        assert self._began_s is not None
        span_s = self._ticks[-1].time_s - self._ticks[0].time_s if self._ticks else 0.0
        if len(self._ticks) <= _LEARN_TICKS or span_s < _LEARN_S:
            if now_s - self._began_s > _LONGEST_PERIOD_S * (_LEARN_TICKS + 1):
                self.problem = f"fewer than {_LEARN_TICKS} ticks in {now_s - self._began_s:.0f} s"
            return
        spans = [two.time_s - one.time_s for one, two in pairwise(self._ticks)]
        period_s = sum(spans) / len(spans)
        slack_s = _JITTER * period_s + 2 * max(tick.uncertainty_s for tick in self._ticks)
        if period_s < _SHORTEST_PERIOD_S:
            self.problem = f"it ticks every {period_s * 1e3:.1f} ms, too fast to follow"
        elif any(abs(span_s - period_s) > slack_s for span_s in spans):
            self.problem = "its ticks do not come at even times"
        self.period_s = period_s
        self._due_s = self._predicted_after(now_s)
