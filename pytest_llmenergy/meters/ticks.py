"""Finding a latched counter's ticks, with few reads."""

from __future__ import annotations

import threading
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.edges import NEAR, Edge, Tick
from pytest_llmenergy.meters.phase import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.002  # how finely a tick is looked for
_WATCH_S = 0.25  # how often ticks are followed while no window has an open edge
_LEARN_TICKS = 5
_LEARN_S = 0.4
_LONGEST_PERIOD_S = 1.0
_SHORTEST_PERIOD_S = 0.008
_LEAD_S = 0.004  # how long before a tick is due it is looked for
_JITTER = 0.25  # of the period: beyond it the ticks are not regular


class TickTracker:
    """Follows a counter's ticks: learns their period, then looks shortly before and after each is due.

    Call `run` when it asks to be called; `edge` marks a window's start or end. A few reads a tick, never a
    spin: polling some counters too fast makes them lose energy.
    """

    def __init__(self, read_j: Callable[[], float], clock: Callable[[], float]) -> None:
        self.problem: str | None = None  # why the ticks cannot be followed
        self._read_j = read_j
        self._clock = clock
        self._lock = threading.Lock()  # edges are made in one thread, ticks found in another
        self._ticks: deque[Tick] = deque(maxlen=40)
        self._edges: list[Edge] = []
        self._seen: tuple[float, float] | None = None  # when, what
        self._began_s: float | None = None
        self._learned: list[tuple[float, float]] = []  # between which looks the first ticks were
        self._phase: Phase | None = None
        self._due_s = 0.0  # of the tick that is looked for

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """The last ticks."""
        return tuple(self._ticks)

    @property
    def period_s(self) -> float | None:
        """Time between two ticks; None while it is not known."""
        return None if self._phase is None else self._phase.period_s

    @property
    def _early_s(self) -> float:
        return max(_LEAD_S, 0.1 * (self.period_s or 0.0))

    @property
    def is_following(self) -> bool:
        """Whether the ticks are known."""
        return self._phase is not None and self.problem is None and bool(self._ticks)

    def edge(self) -> Edge | None:
        """Read the counter and mark an edge there; None while the ticks are not known."""
        with self._lock:
            if not self.is_following:
                return None
            now_s, energy_j, read_s = self._look()
            self._looked(now_s, read_s, energy_j)
            if self._phase is None:  # the counter was reset
                return None
            edge = Edge((now_s + read_s) / 2, energy_j, list(self._ticks))
            self._edges.append(edge)
            self._due_s = min(self._due_s, self._after(self._ticks[-1]))
        return edge

    @property
    def next_look_s(self) -> float:
        """When to look for the tick after an edge that was just made."""
        return self._due_s - self._early_s

    def run(self, _: float) -> float:
        """Look once; when to look again."""
        with self._lock:  # whoever reads first must also be heard first
            now_s, energy_j, read_s = self._look()
            return self._looked(now_s, read_s, energy_j)

    def _look(self) -> tuple[float, float, float]:
        """Before, what the counter showed, after."""
        return self._clock(), self._read_j(), self._clock()

    def _looked(self, now_s: float, read_s: float, energy_j: float) -> float:
        """Take what the counter showed at some time from now_s to read_s."""
        seen, self._seen = self._seen, (now_s, energy_j)
        if self._began_s is None:
            self._began_s = now_s
        if self.problem is not None:
            return now_s + _LONGEST_PERIOD_S
        if seen is not None and energy_j < seen[1]:
            self._ticks.clear()
            self._edges.clear()
            self._learned.clear()
            self._phase = None
            self._began_s = now_s
        elif seen is not None and energy_j > seen[1]:
            self._found(seen[0], read_s, energy_j)
        if self._phase is None:
            self._learn(now_s)
            return now_s + _POLL_S
        if now_s > self._due_s + self._phase.period_s / 2:
            self._due_s = self._phase.due_after(now_s)
        # A first look in good time, should the next come late.
        for lead_s in (self._early_s, _LEAD_S):
            if now_s + _POLL_S < self._due_s - lead_s:
                return self._due_s - lead_s
        return now_s + _POLL_S

    def _found(self, after_s: float, until_s: float, energy_j: float) -> None:
        """The counter ticked between two looks, once or more."""
        if self._phase is None:
            self._learned.append((after_s, until_s))
            self._ticks.append(_tick(after_s, until_s, energy_j, 2 * _POLL_S))
            return
        period_s = self._phase.period_s
        if until_s - after_s < period_s / 2:
            self._phase.see(after_s, until_s)
        tick = _tick(*self._phase.within(after_s, until_s), energy_j, NEAR * period_s)
        self._ticks.append(tick)
        for edge in self._edges:
            edge.see(tick)
        self._edges = [edge for edge in self._edges if not edge.is_complete]
        stride = 1 if self._edges else max(1, round(_WATCH_S / period_s))
        self._due_s = self._after(tick) + (stride - 1) * period_s

    def _after(self, tick: Tick) -> float:
        """When the tick after this one is due; one that may be either of two is taken for the earlier."""
        assert self._phase is not None
        return self._phase.due_after(tick.time_s - tick.uncertainty_s + self._phase.period_s / 2)

    def _learn(self, now_s: float) -> None:
        """Take the period from the first ticks, if they come at even times."""
        assert self._began_s is not None
        # Not of the ticks that are kept: so many fast ones never span it.
        span_s = self._learned[-1][0] - self._learned[0][0] if self._learned else 0.0
        if len(self._learned) <= _LEARN_TICKS or span_s < _LEARN_S:
            if now_s - self._began_s > _LONGEST_PERIOD_S * (_LEARN_TICKS + 1):
                self.problem = f"fewer than {_LEARN_TICKS} ticks in {now_s - self._began_s:.0f} s"
            return
        spans = [two.time_s - one.time_s for one, two in pairwise(self._ticks)]
        period_s = sum(spans) / len(spans)
        slack_s = _JITTER * period_s + 2 * max(tick.uncertainty_s for tick in self._ticks)
        if period_s < _SHORTEST_PERIOD_S:
            self.problem = f"it ticks every {period_s * 1e3:.1f} ms or faster, too fast to follow"
        elif any(abs(span_s - period_s) > slack_s for span_s in spans):
            self.problem = "its ticks do not come at even times"
        self._phase = Phase.of_first(self._learned)
        self._due_s = self._phase.due_after(now_s)


def _tick(low_s: float, high_s: float, energy_j: float, sure_s: float) -> Tick:
    """A tick within these times; one that is known too loosely tells no power."""
    half_s = (high_s - low_s) / 2
    return Tick((low_s + high_s) / 2, half_s, energy_j, is_seen=half_s <= sure_s)
