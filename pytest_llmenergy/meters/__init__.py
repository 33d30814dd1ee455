"""Hardware to joules: one file a source, one protocol for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pytest_llmenergy.records import DomainEnergy, MeterSource


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

    def end(self, mark: Any) -> tuple[DomainEnergy, ...]:
        """The energy of each domain since the mark."""
        ...

    def close(self) -> None:
        """Let the hardware go; later calls are not allowed."""
        ...
