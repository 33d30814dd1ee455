"""What may have disturbed a window: other processes on the GPU, throttling, load from outside our tree."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.meters import nvml_state
from pytest_llmenergy.meters.machine import descendants, tree_busy_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmenergy.meters.machine import Machine
    from pytest_llmenergy.meters.nvml_boards import Board
    from pytest_llmenergy.meters.sampler import Scheduler

# Bits of nvmlClocksEventReasons (nvml.h) that slow a GPU down against its will.
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
_LOOK_S = 1.0
_FRESH_S = 0.2  # what was seen so lately is not looked at again: a window must stay cheap
_KEEP_S = 7200.0
# Load from outside is worth a word from half a CPU on, or from 5 % of a large machine's.
_OUTSIDE_CPUS = 0.5
_OUTSIDE_SHARE = 0.05
_SHORTEST_S = 0.2  # /proc/stat counts in ticks of 10 ms


def throttling(mask: int) -> list[str]:
    """The reasons in a mask of nvmlClocksEventReasons, in words."""
    return [name for bit, name in THROTTLING.items() if mask & bit]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen at one moment."""

    time_s: float
    flags: tuple[str, ...]


class GpuWatch:
    """Looks at throttle reasons and processes once a second, and at the end of a window."""

    def __init__(self, boards: Sequence[Board], scheduler: Scheduler, machine: Machine) -> None:
        self._boards = tuple(board for board in boards if board.problem is None)
        self._scheduler = scheduler
        self._proc = machine.proc
        self._seen: deque[Sight] = deque()
        self._looked_s = 0.0
        scheduler.add(self._look)

    def _look(self, now_s: float) -> float:
        self._looked_s = now_s
        flags = tuple(flag for board in self._boards for flag in self._of(board))
        if flags:
            self._seen.append(Sight(now_s, flags))
        while self._seen and self._seen[0].time_s < now_s - _KEEP_S:
            self._seen.popleft()
        return now_s + _LOOK_S

    def _of(self, board: Board) -> Iterable[str]:
        mask = nvml_state.throttle_mask(board)
        for reason in throttling(mask or 0):
            yield f"{board.domain}: {reason}"
        foreign = nvml_state.foreign_processes(board, lambda: set(descendants(self._proc, os.getpid())))
        if foreign:
            yield f"{board.domain}: used by another process ({', '.join(map(str, sorted(foreign)))})"

    def begin(self) -> float:
        """Only the time counts."""
        return self._scheduler.clock()

    def end(self, mark: float) -> tuple[str, ...]:
        """Everything seen since, once each."""
        now_s = self._scheduler.clock()
        if now_s - self._looked_s > _FRESH_S:
            self._look(now_s)
        return tuple(
            dict.fromkeys(flag for sight in tuple(self._seen) if sight.time_s >= mark for flag in sight.flags)
        )


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """CPU time since boot: of the whole machine and of our tree."""

    time_s: float
    machine_s: float
    own_s: float | None
    cpus: int


@dataclass(frozen=True, slots=True)
class CpuSight:
    """Load from outside over a time."""

    since_s: float
    time_s: float
    outside_cpus: float


class CpuWatch:
    """Compares the machine's CPU time with that of our process tree, once a second and at a window's end."""

    def __init__(self, machine: Machine, scheduler: Scheduler) -> None:
        self._machine = machine
        self._scheduler = scheduler
        self._last: CpuLoad | None = None
        self._seen: deque[CpuSight] = deque()
        scheduler.add(self._look)

    def _look(self, now_s: float) -> float:
        if self._last is not None and now_s - self._last.time_s < _SHORTEST_S:
            return self._last.time_s + _LOOK_S  # nothing could be told of so short a time
        busy_s = self._machine.busy_s_by_cpu()
        own_s = tree_busy_s(self._machine.proc, os.getpid())
        load = CpuLoad(now_s, sum(busy_s.values()), own_s, len(busy_s))
        if self._last is not None:
            outside = outside_load(self._last, load)
            if outside:
                self._seen.append(CpuSight(self._last.time_s, now_s, outside))
        self._last = load
        while self._seen and self._seen[0].time_s < now_s - _KEEP_S:
            self._seen.popleft()
        return now_s + _LOOK_S

    def begin(self) -> float:
        """Only the time counts."""
        return self._scheduler.clock()

    def end(self, mark: float) -> tuple[str, ...]:
        """The worst load from outside over a time that the window shares: half of it, or of the window."""
        now_s = self._scheduler.clock()
        if self._last is None or now_s - self._last.time_s > _FRESH_S:
            self._look(now_s)
        cpus = 0 if self._last is None else self._last.cpus
        found = [
            sight.outside_cpus
            for sight in tuple(self._seen)  # the sampler adds to them
            if self._is_beside(sight, mark, now_s)
        ]
        return (f"cpu: {max(found):.1f} of {cpus} CPUs busy with other processes",) if found else ()

    def _is_beside(self, sight: CpuSight, start_s: float, end_s: float) -> bool:
        # What was going on at the last look goes on: a window may be shorter than the time between two looks.
        is_latest = self._last is not None and sight.time_s >= self._last.time_s
        shared_s = (end_s if is_latest else min(end_s, sight.time_s)) - max(start_s, sight.since_s)
        return shared_s >= min(sight.time_s - sight.since_s, end_s - start_s) / 2


def outside_load(before: CpuLoad, after: CpuLoad) -> float:
    """How many CPUs processes outside our tree kept busy; 0 where that is little, or cannot be told."""
    runtime_s = after.time_s - before.time_s
    if runtime_s < _SHORTEST_S or before.own_s is None or after.own_s is None:
        return 0.0
    outside = (after.machine_s - before.machine_s - (after.own_s - before.own_s)) / runtime_s
    if outside <= max(_OUTSIDE_CPUS, _OUTSIDE_SHARE * after.cpus):
        return 0.0
    return outside
