"""The interval whose energy is attributed, and the set of meters that watch it."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from pytest_llmenergy.meters import Meter
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


@dataclass(slots=True)
class Window:
    """One interval; its figures are there once it has closed."""

    label: str = ""
    started_s: float = 0.0
    runtime_s: float | None = None
    domains: tuple[DomainEnergy, ...] = ()
    meter_cpu_s: float | None = None  # what reading the meters cost this process


class Meters:
    """The meters in use on this machine, and the sources that are not, with the reason."""

    def __init__(
        self,
        meters: Iterable[Meter],
        *,
        others: Iterable[MeterSource] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._meters = tuple(meters)
        self.sources: tuple[MeterSource, ...] = (*(meter.source for meter in self._meters), *others)
        self.clock = clock
        self._opened_s = clock()

    @contextlib.contextmanager
    def window(self, label: str = "") -> Iterator[Window]:
        """Meter a block; the window closes, and every meter ends, also when the block raises."""
        window = Window(label)
        with contextlib.ExitStack() as stack:
            synchronise()
            cpu_s = time.thread_time()
            marks: list[tuple[Meter, Any]] = [(meter, meter.begin()) for meter in self._meters]
            window.meter_cpu_s = time.thread_time() - cpu_s
            stack.callback(self._end, window, marks)
            start_s = self.clock()
            window.started_s = start_s - self._opened_s
            try:
                yield window
            finally:
                synchronise()
                window.runtime_s = self.clock() - start_s

    @staticmethod
    def _end(window: Window, marks: list[tuple[Meter, Any]]) -> None:
        cpu_s = time.thread_time()
        # Last begun, first ended: the windows of the meters nest, so each holds the block whole.
        ended = [meter.end(mark) for meter, mark in reversed(marks)]
        window.domains = tuple(domain for domains in reversed(ended) for domain in domains)
        window.meter_cpu_s = (window.meter_cpu_s or 0.0) + time.thread_time() - cpu_s

    def close(self) -> None:
        """Close every meter, also when one of them fails."""
        with contextlib.ExitStack() as stack:
            for meter in self._meters:
                stack.callback(meter.close)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
