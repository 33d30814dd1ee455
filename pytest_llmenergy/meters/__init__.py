"""Hardware to joules: one file a source, one protocol for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from pytest_llmenergy.records import DomainEnergy, MeterSource

if TYPE_CHECKING:
    from pytest_llmenergy.meters.window import Meters

Domains: TypeAlias = tuple[DomainEnergy, ...]
# What a window's end gives: the energies, or a call that gives them for the times at which the block began
# and ended, in s of the meters' clock. It may wait for a source that knows them later; its bounds hold what
# lies between the source's readings and those times.
Reading: TypeAlias = Domains | Callable[[float, float], Domains]


@runtime_checkable
class Meter(Protocol):
    """One source of energy readings, opened late and closed always.

    Windows may nest and overlap: `begin` returns a mark that is opaque to everyone else, `end` takes it.
    A read that fails is no exception but a domain that is unavailable, with the reason.
    """

    @property
    def source(self) -> MeterSource:
        """Name, domains and provenance, for the record of the machine."""
        ...

    def begin(self) -> Any:
        """Mark now."""
        ...

    def end(self, mark: Any) -> Reading:
        """The energy of each domain since the mark, or a call that gives it, after a bounded wait at most."""
        ...

    def close(self) -> None:
        """Let the hardware go; later calls are not allowed."""
        ...


@runtime_checkable
class OwnProcess(Protocol):
    """A meter that runs a process of its own, whose cost counts as the meter's.

    It is begun first and ended last: what it does then takes long, and must not lie between another meter's
    reading and the block.
    """

    @property
    def cpu_s(self) -> float:
        """CPU time of that process so far."""
        ...


class Watch(Protocol):
    """Looks out for what may disturb a window."""

    def begin(self) -> Any:
        """Mark now."""
        ...

    def end(self, mark: Any) -> tuple[str, ...]:
        """What has disturbed the window since the mark, in words; empty when nothing has."""
        ...


def open_meters(*arguments: Any, **options: Any) -> Meters:
    """Open the meters of this machine: see `pytest_llmenergy.meters.opening.open_meters`."""
    from pytest_llmenergy.meters import opening

    return opening.open_meters(*arguments, **options)
