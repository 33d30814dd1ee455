"""The meter of the simulated machine: its counters are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.records import DomainEnergy, MeterSource, Provenance

if TYPE_CHECKING:
    from pytest_llmenergy.simulation import World


class ReplayMeter:
    """Reads a `World`."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def source(self) -> MeterSource:
        """Every domain of the world."""
        return MeterSource(
            name="replay",
            available=True,
            domains=tuple(self._world.energy_j),
            provenance=Provenance.ESTIMATED if self._world.replay.estimated else Provenance.MEASURED,
        )

    def begin(self) -> dict[str, float]:
        """The counters, in J."""
        return dict(self._world.energy_j)

    def end(self, mark: dict[str, float]) -> tuple[DomainEnergy, ...]:
        """What the counters grew by."""
        estimated = self._world.replay.estimated
        return tuple(
            DomainEnergy(
                domain=domain,
                energy_j=energy_j - mark.get(domain, 0.0),
                provenance=Provenance.ESTIMATED if domain in estimated else Provenance.MEASURED,
                bound_j=0.0,
                meter="replay",
            )
            for domain, energy_j in self._world.energy_j.items()
        )

    def close(self) -> None:
        """Nothing is held."""
