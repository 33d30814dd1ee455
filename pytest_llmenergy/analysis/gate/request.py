"""What a measuring session was asked to hold its energies against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRequest:
    """The gate's options of the pytest plugin."""

    baseline: str | None = None  # a file, a folder, or the name of stored baselines
    binding: bool = False  # the verdict decides the exit status
    fail_above: float | None = None
    session_spread: float | None = None
    tolerances: tuple[str, ...] = ()  # CELLS=SHARE
    strict: bool = False
    subset: bool = False
    budget: Path | None = None
    save: str | None = None
    store: Path = Path(".llmenergy")

    @property
    def asks(self) -> bool:
        """Whether there is anything to do."""
        return self.baseline is not None or self.budget is not None or self.save is not None
