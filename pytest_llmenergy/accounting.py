"""Which domains are added to which sum, and what the sum may be called.

Packages hold their cores and psys holds both, so they are never added to each other. See
docs/decisions/0001-what-cpu-energy-includes.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.records import DomainEnergy, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ATTRIBUTED = "cpu:attributed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySum:
    """A sum of domains: unknown when a part is, estimated when a part is."""

    energy_j: float | None
    bound_j: float | None
    provenance: Provenance


def total(domains: Iterable[DomainEnergy]) -> EnergySum | None:
    """Add domains; None when there are none."""
    parts = tuple(domains)
    if not parts:
        return None
    energies = [part.energy_j for part in parts]
    if any(energy_j is None for energy_j in energies):
        return EnergySum(energy_j=None, bound_j=None, provenance=Provenance.UNAVAILABLE)
    bounds = [part.bound_j for part in parts]
    estimated = any(part.provenance is not Provenance.MEASURED for part in parts)
    return EnergySum(
        energy_j=sum(energy_j for energy_j in energies if energy_j is not None),
        bound_j=None if None in bounds else sum(bound_j for bound_j in bounds if bound_j is not None),
        provenance=Provenance.ESTIMATED if estimated else Provenance.MEASURED,
    )


def gpu_domains(domains: Iterable[DomainEnergy]) -> tuple[DomainEnergy, ...]:
    """The GPUs' boards."""
    return tuple(part for part in domains if part.domain.startswith("gpu:"))


def cpu_domains(domains: Sequence[DomainEnergy]) -> tuple[DomainEnergy, ...]:
    """What counts as CPU energy: the attributed cores where they were metered, else packages and DRAM."""
    attributed = tuple(part for part in domains if part.domain == ATTRIBUTED)
    packages = tuple(part for part in domains if part.domain.startswith(("cpu:package", "dram:")))
    if not packages or any(part.provenance is Provenance.MEASURED for part in attributed):
        return attributed or packages
    return packages


def gpu_energy(domains: Sequence[DomainEnergy]) -> EnergySum | None:
    """Energy of all GPUs; None on a machine without one."""
    return total(gpu_domains(domains))


def cpu_energy(domains: Sequence[DomainEnergy]) -> EnergySum | None:
    """Energy of the CPU side; None where no source covers it."""
    return total(cpu_domains(domains))


def energy(domains: Sequence[DomainEnergy]) -> EnergySum | None:
    """GPU and CPU energy together: unknown when either is there and unknown."""
    return total((*gpu_domains(domains), *cpu_domains(domains)))
