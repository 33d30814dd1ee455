"""Meters whose every window is scripted: what it reads, what disturbs it, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import DomainEnergy, MeterSource, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable


def gpu(energy_j: float, bound_j: float = 0.0) -> DomainEnergy:
    """A reading."""
    return DomainEnergy(domain="gpu:0", energy_j=energy_j, bound_j=bound_j, provenance=Provenance.MEASURED)


LOST = DomainEnergy(domain="gpu:0", energy_j=None, provenance=Provenance.UNAVAILABLE, reason="GPU is lost")


class ScriptedWindows:
    """A meter with a process of its own, a watch, and the clock they share.

    Args:
        reads: a window's reading, by its number from 0 and its runtime in s.
        flags: what disturbed a window, by its number.
        cpu_s: CPU time of the meter's process in one window.
    """

    def __init__(
        self,
        *,
        reads: Callable[[int, float], DomainEnergy] = lambda _, runtime_s: gpu(300 * runtime_s),
        flags: Callable[[int], tuple[str, ...]] = lambda _: (),
        cpu_s: float = 0.0,
    ) -> None:
        self.now_s = 0.0
        self.meters = Meters([_Meter(self, reads, cpu_s)], watches=[_Watch(flags)], clock=lambda: self.now_s)

    def work(self, runtime_s: float) -> None:
        """Take so long."""
        self.now_s += runtime_s


class _Meter:
    def __init__(
        self, scripted: ScriptedWindows, reads: Callable[[int, float], DomainEnergy], cpu_s: float
    ) -> None:
        self._scripted, self._reads, self._a_window_s = scripted, reads, cpu_s
        self._number = -1
        self.cpu_s = 0.0

    @property
    def source(self) -> MeterSource:
        return MeterSource(
            name="scripted", available=True, domains=("gpu:0",), provenance=Provenance.MEASURED
        )

    def begin(self) -> tuple[int, float]:
        self._number += 1
        return self._number, self._scripted.now_s

    def end(self, mark: tuple[int, float]) -> tuple[DomainEnergy, ...]:
        number, start_s = mark
        self.cpu_s += self._a_window_s
        return (self._reads(number, self._scripted.now_s - start_s),)

    def close(self) -> None:
        """Nothing is held."""


class _Watch:
    def __init__(self, flags: Callable[[int], tuple[str, ...]]) -> None:
        self._flags = flags
        self._number = -1

    def begin(self) -> int:
        self._number += 1
        return self._number

    def end(self, mark: int) -> tuple[str, ...]:
        return self._flags(mark)
