"""A powercap tree in a temporary folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class PowercapTree:
    """Zones whose counters are set by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        folder: str,
        name: str,
        *,
        energy_uj: int = 0,
        range_uj: int = 262_143_328_850,
        limit_w: float = 280,
    ) -> Path:
        """Make a zone."""
        zone = self.root / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (zone / "constraint_0_power_limit_uw").write_text(f"{int(limit_w * 1e6)}\n")
        self.set(folder, energy_uj)
        return zone

    def set(self, folder: str, energy_uj: int) -> None:
        """Put the counter somewhere."""
        (self.root / folder / "energy_uj").write_text(f"{energy_uj}\n")
