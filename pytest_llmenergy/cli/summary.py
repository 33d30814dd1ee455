"""`llmenergy-report summary`: the closing table again, from the JSON."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("summary")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(results: tuple[Path, ...]) -> None:
    """Print the table of energy per token of results documents."""
    from pytest_llmenergy.campaign.results import read_results
    from pytest_llmenergy.report.tables import render, summary_tables

    for path in results:
        campaign = read_results(path)
        if len(results) > 1:
            click.echo(f"{path}:")
        if not campaign.complete:
            click.echo("(incomplete: the campaign was interrupted)")
        for line in render(summary_tables(campaign)):
            click.echo(line)
