"""What a person is told before the first test and after the last, in lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.campaign.runner import Runner
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.records import Campaign


def planned(settings: Settings, *, is_default: bool) -> list[str]:
    """What will be measured, and where the results will be."""
    if not settings.models:
        return [f"llm-energy: what the tests ask for, results in {settings.folder}"]
    models = ", ".join(settings.models) + (" (the default; choose with --models)" if is_default else "")
    cache = "KV cache" if settings.kv_cache else "no KV cache"
    grid = f"grid {settings.grid_name}, batch {settings.batch_size}, {cache}, seed {settings.seed}"
    return [f"llm-energy: {models}", f"llm-energy: {grid}, results in {settings.folder}"]


def opened(runner: Runner) -> list[str]:
    """The meters, and what became of a former campaign of the folder."""
    lines = []
    for source in runner.environment.meters:
        if source.available:
            kind = "" if source.provenance is None else f" ({source.provenance.value})"
            lines.append(f"meter {source.name}{kind}: {', '.join(source.domains)}")
    if runner.kept is not None:
        lines.append(f"a former campaign was kept in {runner.kept}")
    if runner.resumed_cells:
        cells = "1 cell was" if runner.resumed_cells == 1 else f"{runner.resumed_cells} cells were"
        lines.append(f"resuming: {cells} measured before")
    return lines


def finished(campaign: Campaign, results_path: Path) -> list[str]:
    """The tables, and where the document is."""
    from pytest_llmenergy.report.tables import render, summary_tables

    state = "" if campaign.complete else " (incomplete: go on with --llm-energy-resume)"
    return [*render(summary_tables(campaign)), f"results: {results_path}{state}"]
