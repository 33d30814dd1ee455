"""`llmenergy-report doctor`: which meters this machine has, why not the others, and what would help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from pytest_llmenergy.records import MeterSource

SCHEMA = "llmenergy.doctor/1"
MODELS_SCHEMA = "llmenergy.models/1"


@click.command("doctor")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the answer as JSON too.")
@click.option(
    "--self-check",
    "self_check_s",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Compare each GPU's energy counter with its power for so long; 0 leaves that out.",
)
@click.option("--models", is_flag=True, help="List the model presets and what they need instead.")
@click.option(
    "--gpu-memory",
    "gpu_memory_gb",
    type=click.FloatRange(min=0, min_open=True),
    default=40.0,
    show_default=True,
    metavar="GB",
    help="With --models: the size of the GPUs to count.",
)
def command(json_path: Path | None, self_check_s: float, gpu_memory_gb: float, *, models: bool) -> None:
    """Say what can be metered on this machine, why not the rest, and the command that would help."""
    if models:
        _models(json_path, gpu_memory_gb)
        return
    from pytest_llmenergy.campaign.results import write_json
    from pytest_llmenergy.meters.opening import survey
    from pytest_llmenergy.report.tables import render

    sources = survey(self_check_s=self_check_s)
    for line in render([_table(sources), *_advice(sources)]):
        click.echo(line)
    if json_path is not None:
        write_json(json_path, document(sources))


def _models(json_path: Path | None, gpu_memory_gb: float) -> None:
    from dataclasses import asdict

    from pytest_llmenergy.campaign.results import write_json
    from pytest_llmenergy.report.model_table import model_rows, model_table
    from pytest_llmenergy.report.tables import render

    rows = model_rows(gpu_memory_gb)
    for line in render([model_table(rows, gpu_memory_gb)]):
        click.echo(line)
    if json_path is not None:
        found = [asdict(row) for row in rows]
        write_json(json_path, {"schema": MODELS_SCHEMA, "gpu_memory_gb": gpu_memory_gb, "models": found})


def document(sources: Sequence[MeterSource]) -> dict[str, Any]:
    """The answer as a document."""
    import msgspec

    return {"schema": SCHEMA, "sources": msgspec.to_builtins(sources)}


def _table(sources: Sequence[MeterSource]) -> Table:
    from pytest_llmenergy.report.tables import plain_table
    from pytest_llmenergy.units import UNKNOWN, format_quantity

    table = plain_table("Sources of energy readings", "source", "state", "domains", "update", left=3)
    for source in sources:
        state = UNKNOWN if source.provenance is None else source.provenance.value
        if not source.available:
            table.add_row(source.name, source.details.get("unavailable", "no"), UNKNOWN, UNKNOWN)
            continue
        periods = sorted({f"{format_quantity(period_s, 's', 2)}" for period_s in _periods(source)})
        table.add_row(source.name, state, ", ".join(source.domains), ", ".join(periods) or UNKNOWN)
    return table


def _boards(source: MeterSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """A GPU source's details by domain."""
    for domain, details in source.details.items():
        if isinstance(details, dict):
            yield domain, details


def _periods(source: MeterSource) -> list[float]:
    own = [source.details, *(details for _, details in _boards(source))]
    return [details["update_period_s"] for details in own if details.get("update_period_s")]


def _advice(sources: Sequence[MeterSource]) -> Iterator[str]:
    for source in sources:
        for domain, details in _boards(source):
            yield f"{domain}: {details['name']}, by {details['method']}"
            for check in ("mig", "unit_check", "self_check", "counter"):
                if check in details:
                    yield f"  {check.replace('_', ' ')}: {details[check]}"
        if source.reason:
            yield f"{source.name}: {source.reason}"
        if source.remedy:
            # A command on a line of its own can be copied.
            yield re.sub(r"([Rr]un:) ", r"\1\n    ", f"  {source.remedy}")
