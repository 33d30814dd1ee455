"""The interval whose energy is attributed, and the set of meters that watch it."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from pytest_llmenergy.meters import OwnProcess
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from pytest_llmenergy.meters import Meter, Reading, Watch
    from pytest_llmenergy.meters.sampler import Scheduler
    from pytest_llmenergy.meters.trace import Trace
    from pytest_llmenergy.records import DomainEnergy, MeterSource


def synchronise() -> None:
    """Wait for GPU work that was queued, by whatever library queued it; none is imported to do so."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        cupy.cuda.get_current_stream().synchronize()


class Window:
    """One interval; its figures are there once it has closed.

    Some sources know a window's energy only a little after its end (a counter's next tick, a recorder's next
    rows). They are asked when `domains` is first read, which then may take as long as they need, and not
    while the window closes.
    """

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.started_s = 0.0
        self.runtime_s: float | None = None
        self.flags: tuple[str, ...] = ()  # what may have disturbed it, in words
        self.meter_cpu_s: float | None = None  # what the meters cost, in CPU time, in this window
        self._edges_s = (0.0, 0.0)  # of the block, by the meters' clock
        self._readings: tuple[Reading, ...] = ()

    @property
    def domains(self) -> tuple[DomainEnergy, ...]:
        """The energy of every domain; empty while the window is open."""
        cpu_s = time.thread_time()
        late = any(callable(reading) for reading in self._readings)
        settled = [reading(*self._edges_s) if callable(reading) else reading for reading in self._readings]
        self._readings = tuple(settled)
        if late:
            self.meter_cpu_s = (self.meter_cpu_s or 0.0) + time.thread_time() - cpu_s
        found: dict[str, DomainEnergy] = {}
        for domains in settled:
            for part in domains:
                found.setdefault(part.domain, part)  # the meter that was named first
        return tuple(found.values())


class Meters:
    """The meters in use on this machine, and the sources that are not, with the reason."""

    def __init__(
        self,
        meters: Iterable[Meter],
        *,
        others: Iterable[MeterSource] = (),
        watches: Iterable[Watch] = (),
        sampler: Scheduler | None = None,
        trace: Trace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._meters = tuple(meters)
        self._own_processes = [meter for meter in self._meters if isinstance(meter, OwnProcess)]
        # By place in the order they were named in, which says whose a domain is: slow ones begin first.
        self._order = sorted(
            range(len(self._meters)), key=lambda place: not isinstance(self._meters[place], OwnProcess)
        )
        self._watches = tuple(watches)
        self._sampler = sampler
        self.trace = trace  # the power of every domain over time, where that was asked for
        self._others = tuple(others)
        self.clock = clock
        self.opened_s = clock()

    @property
    def sources(self) -> tuple[MeterSource, ...]:
        """The meters in use, then the sources that are not."""
        return (*(meter.source for meter in self._meters), *self._others)

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know of the sources in use before anything is measured."""
        found = []
        for meter in self._meters:
            source = meter.source
            if source.provenance is Provenance.MEASURED and source.reason:
                found.append(f"{source.name}: {source.reason}")
            for domain, details in source.details.items():
                check = details.get("self_check", "") if isinstance(details, dict) else ""
                if check.startswith("failed"):
                    found.append(f"{domain}: self-check {check}")
        return tuple(found)

    def _failures(self) -> Iterator[str]:
        """Background readings that have ended, and what depended on them with them."""
        for error in () if self._sampler is None else tuple(self._sampler.failures):
            yield f"meters: a background reading has ended: {type(error).__name__}: {error}"

    @contextlib.contextmanager
    def window(self, label: str = "") -> Iterator[Window]:
        """Meter a block; the window closes, and every meter ends, also when the block raises."""
        window = Window(label)
        with contextlib.ExitStack() as stack:
            synchronise()
            cpu_s = self._cpu_s()
            watched = [(watch, watch.begin()) for watch in self._watches]
            marks = {place: self._meters[place].begin() for place in self._order}
            begun_cpu_s = self._cpu_s()
            stack.callback(self._end, window, marks, watched, cpu_s, begun_cpu_s)
            start_s = self.clock()
            window.started_s = start_s - self.opened_s
            try:
                yield window
            finally:
                synchronise()
                end_s = self.clock()
                window.runtime_s = end_s - start_s
                window._edges_s = (start_s, end_s)  # noqa: SLF001 - its own

    def _cpu_s(self) -> tuple[float, float]:
        """CPU time of this thread, and of the meters' own threads and processes."""
        sampler_s = 0.0 if self._sampler is None else self._sampler.cpu_s
        return time.thread_time(), sampler_s + sum(meter.cpu_s for meter in self._own_processes)

    def _end(
        self,
        window: Window,
        marks: dict[int, Any],
        watched: list[tuple[Watch, Any]],
        cpu_s: tuple[float, float],
        begun_cpu_s: tuple[float, float],
    ) -> None:
        ending_s, _ = self._cpu_s()
        # Last begun, first ended: the windows of the meters nest, so each holds the block whole.
        readings = {place: self._meters[place].end(mark) for place, mark in reversed(marks.items())}
        window._readings = tuple(readings[place] for place in range(len(readings)))  # noqa: SLF001
        window.flags = (*(flag for watch, mark in watched for flag in watch.end(mark)), *self._failures())
        ended_s, sampler_s = self._cpu_s()
        window.meter_cpu_s = (begun_cpu_s[0] - cpu_s[0]) + (ended_s - ending_s) + (sampler_s - cpu_s[1])

    def close(self) -> None:
        """Close every meter, also when one of them fails."""
        with contextlib.ExitStack() as stack:
            for meter in self._meters:
                stack.callback(meter.close)
            if self._sampler is not None:
                stack.callback(self._sampler.close)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
