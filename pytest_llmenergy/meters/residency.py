"""Which physical cores our threads run on, and what share of each core's busy time is theirs."""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.machine import ThreadTime, thread_times

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llmenergy.meters.machine import Machine


@dataclass(frozen=True, slots=True)
class Residency:
    """Over (start_s, end_s]: core -> our share of its busy time, 0..1. A core that is not named has none."""

    start_s: float
    end_s: float
    shares: Mapping[int, float]


def shares(
    before: Mapping[int, ThreadTime],
    after: Mapping[int, ThreadTime],
    busy_s_by_core: Mapping[int, float],
    core_of_cpu: Mapping[int, int],
) -> dict[int, float]:
    """Our share of every core we ran on.

    A thread's time since the last look is laid to the core it was last seen on. Alone on a core we own its
    power whole, as in Wilkins et al., section 3.2.2; beside others, in proportion to time.
    """
    own_s: dict[int, float] = {}
    for thread, now in after.items():
        then = before.get(thread)
        spent_s = now.busy_s - (0.0 if then is None else then.busy_s)
        if spent_s > 0:
            core = core_of_cpu.get(now.cpu, now.cpu)
            own_s[core] = own_s.get(core, 0.0) + spent_s
    return {
        core: min(1.0, spent_s / max(spent_s, busy_s_by_core.get(core, 0.0)))
        for core, spent_s in own_s.items()
    }


class ResidencySampler:
    """Looks at every thread of this process and its children, again and again."""

    def __init__(self, machine: Machine, period_s: float, *, keep_s: float = 7200.0) -> None:
        self._machine = machine
        self._period_s = period_s
        self._keep_s = keep_s
        self._core_of_cpu = machine.core_of_cpu()
        self._threads: dict[int, ThreadTime] = {}
        self._busy_s: dict[int, float] = {}
        self._last_s: float | None = None
        self._lock = threading.Lock()  # windows look as well, from another thread
        self.records: deque[Residency] = deque()

    def sample(self, now_s: float) -> float:
        """Look once; when to look again."""
        with self._lock:
            if self._last_s is None or now_s > self._last_s:
                self._look(now_s)
        return now_s + self._period_s

    def _look(self, now_s: float) -> None:
        threads = thread_times(self._machine.proc, os.getpid())
        busy_s: dict[int, float] = {}
        for cpu, seconds in self._machine.busy_s_by_cpu().items():
            core = self._core_of_cpu.get(cpu, cpu)
            busy_s[core] = busy_s.get(core, 0.0) + seconds
        if self._last_s is not None:
            spent_s = {core: seconds - self._busy_s.get(core, seconds) for core, seconds in busy_s.items()}
            self.records.append(
                Residency(self._last_s, now_s, shares(self._threads, threads, spent_s, self._core_of_cpu))
            )
            while self.records[0].end_s < now_s - self._keep_s:
                self.records.popleft()
        self._threads, self._busy_s, self._last_s = threads, busy_s, now_s
