"""Energy of LLM inference: metered in pytest, kept as JSON, turned into models, plans and verdicts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llmenergy.campaign.opening import open_campaign
    from pytest_llmenergy.campaign.results import read_results
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.errors import LLMEnergyError
    from pytest_llmenergy.plugin.fixture import Energy
    from pytest_llmenergy.records import Campaign, CellRecord, DomainEnergy, Provenance, Trial, WindowRecord

# Public name -> its module, imported when first asked for: pytest loads this package in every run.
_HOMES = {
    "Campaign": "records",
    "CellRecord": "records",
    "DomainEnergy": "records",
    "Energy": "plugin.fixture",
    "LLMEnergyError": "errors",
    "Provenance": "records",
    "Settings": "campaign.settings",
    "Trial": "records",
    "WindowRecord": "records",
    "open_campaign": "campaign.opening",
    "read_results": "campaign.results",
}

__all__ = [
    "Campaign",
    "CellRecord",
    "DomainEnergy",
    "Energy",
    "LLMEnergyError",
    "Provenance",
    "Settings",
    "Trial",
    "WindowRecord",
    "open_campaign",
    "read_results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
