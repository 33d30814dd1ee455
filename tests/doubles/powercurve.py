"""Power whose energy is known exactly, and time that moves only when told to."""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class PowerCurve:
    """Piecewise constant power in W; segments are (from_s, power_w), the first from 0."""

    def __init__(self, segments: Sequence[tuple[float, float]]) -> None:
        self._from_s = [from_s for from_s, _ in segments]
        self._power_w = [power_w for _, power_w in segments]
        ends = self._from_s[1:]
        steps = [
            (end - start) * power
            for start, end, power in zip(self._from_s, ends, self._power_w, strict=False)
        ]
        self._before_j = [0.0, *itertools.accumulate(steps)]

    def energy_j(self, time_s: float) -> float:
        """Energy since 0."""
        index = max(0, bisect_right(self._from_s, time_s) - 1)
        return self._before_j[index] + (time_s - self._from_s[index]) * self._power_w[index]

    def power_w(self, time_s: float) -> float:
        return self._power_w[max(0, bisect_right(self._from_s, time_s) - 1)]


@dataclass
class LatchedCounter:
    """A counter of a power curve that is latched every so often, as NVML's is."""

    curve: PowerCurve
    period_s: float
    phase_s: float = 0.0

    def energy_j(self, time_s: float) -> float:
        ticks = math.floor((time_s - self.phase_s) / self.period_s + 1e-9)
        return math.floor(1000 * self.curve.energy_j(max(0.0, ticks * self.period_s + self.phase_s))) / 1000


@dataclass
class ManualScheduler:
    """The scheduler of the tests: tasks run on time, exactly or `late_s` later, and nothing sleeps."""

    now_s: float = 0.0
    late_s: Callable[[], float] = lambda: 0.0
    on_advance: Callable[[float], None] = lambda _: None
    cpu_s: float = 0.0
    failures: list[Exception] = field(default_factory=list)
    _due: list[tuple[float, int, Callable[[float], float]]] = field(default_factory=list)
    _count: int = 0

    def clock(self) -> float:
        return self.now_s

    def _set(self, now_s: float) -> None:
        self.now_s = max(now_s, self.now_s)
        self.on_advance(self.now_s)

    def add(self, task: Callable[[float], float]) -> None:
        self._push(self.now_s, task)
        self.advance(0.0)

    def _push(self, due_s: float, task: Callable[[float], float]) -> None:
        self._count += 1
        heapq.heappush(self._due, (due_s + self.late_s(), self._count, task))

    def hasten(self, task: Callable[[float], float], time_s: float) -> None:
        due = next((entry for entry in self._due if entry[2] == task), None)
        if due is not None and time_s < due[0]:
            self._due.remove(due)
            heapq.heapify(self._due)
            self._push(time_s, task)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until_s = self.now_s + seconds
        while self._due and self._due[0][0] <= until_s:
            due_s, _, task = heapq.heappop(self._due)
            self._set(due_s)
            self._push(task(self.now_s), task)
        self._set(until_s)

    def wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        until_s = self.now_s + timeout_s
        while not done() and self._due and self._due[0][0] <= until_s:
            self.advance(max(0.0, self._due[0][0] - self.now_s))
        if not done():
            self._set(until_s)
        return done()

    def close(self) -> None:
        self._due.clear()
