"""CPU energy where nothing measures it: CPU time of our process tree times thermal design power."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pytest_llmenergy.accounting import ATTRIBUTED
from pytest_llmenergy.meters import tdp
from pytest_llmenergy.meters.machine import Machine, tree_busy_s
from pytest_llmenergy.records import DomainEnergy, MeterSource, Provenance

if TYPE_CHECKING:
    from pathlib import Path

NAME = "estimate"


def watts_per_cpu(machine: Machine) -> tuple[float, str]:
    """Power a busy logical CPU is taken to draw, and what that rests on.

    A core with two hardware threads shares its watts between them. A guest sees hardware threads.
    """
    model = machine.cpu_model()
    known = tdp.find(model)
    cores = machine.core_of_cpu()
    threads_per_core = (
        2 if machine.is_virtual() else max(1, round(len(cores) / len(set(cores.values()) or {0})))
    )
    if known is not None:
        power_w = known.tdp_w / known.cores / threads_per_core
        return (
            power_w,
            f"CPU time x {known.tdp_w:g} W TDP / {known.cores * threads_per_core} CPUs ({known.name})",
        )
    power_w = tdp.DEFAULT_W_PER_CORE / threads_per_core
    return power_w, f"CPU time x {power_w:g} W a logical CPU, the default for {model or 'an unknown CPU'}"


class EstimateMeter:
    """Always an estimate, of this process and its children alone; idle power is not in it."""

    def __init__(self, machine: Machine | None = None) -> None:
        machine = machine or Machine.here()
        self._proc: Path = machine.proc
        self._power_w, self._basis = watts_per_cpu(machine)
        self._traced: tuple[float, float | None] = (0.0, None)

    @property
    def source(self) -> MeterSource:
        """One domain."""
        return MeterSource(
            name=NAME,
            available=True,
            domains=(ATTRIBUTED,),
            provenance=Provenance.ESTIMATED,
            reason=self._basis,
            details={"w_per_logical_cpu": self._power_w},
        )

    def power_w(self) -> dict[str, float]:
        """Mean power since the last call."""
        now_s, busy_s = time.perf_counter(), self.begin()
        (last_s, last_busy_s), self._traced = self._traced, (now_s, busy_s)
        if busy_s is None or last_busy_s is None or now_s <= last_s:
            return {}
        return {ATTRIBUTED: max(0.0, busy_s - last_busy_s) * self._power_w / (now_s - last_s)}

    def begin(self) -> float | None:
        """CPU time of the tree, in s."""
        return tree_busy_s(self._proc, os.getpid())

    def end(self, mark: float | None) -> tuple[DomainEnergy, ...]:
        """What the tree has used since, times the power."""
        now_s = tree_busy_s(self._proc, os.getpid())
        if mark is None or now_s is None:
            reason = f"{self._proc}/{os.getpid()}/stat cannot be read"
            return (
                DomainEnergy(
                    domain=ATTRIBUTED,
                    energy_j=None,
                    provenance=Provenance.UNAVAILABLE,
                    reason=reason,
                    meter=NAME,
                ),
            )
        return (
            DomainEnergy(
                domain=ATTRIBUTED,
                # A child that is lost without having been waited for takes its time with it.
                energy_j=max(0.0, now_s - mark) * self._power_w,
                provenance=Provenance.ESTIMATED,
                reason=self._basis,
                meter=NAME,
            ),
        )

    def close(self) -> None:
        """Nothing is held."""
