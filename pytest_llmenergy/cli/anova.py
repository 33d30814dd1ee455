"""`llmenergy-report anova`: do tokens in, tokens out and their interaction matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmenergy.cli.selection import METRICS, metrics_named, selected, selection

if TYPE_CHECKING:
    from pytest_llmenergy.cli.selection import Selection

ANOVA_SCHEMA = "llmenergy.anova/1"


@click.command("anova")
@selection
@click.option(
    "--metric", "metrics", multiple=True, type=click.Choice(METRICS), help="[default: all that are known]"
)
@click.option("--log", is_flag=True, help="Of the logarithm: effects as factors.")
@click.option("--by-model", is_flag=True, help="With the model as a factor.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the analysis.")
def command(
    *, chosen: Selection, metrics: tuple[str, ...], log: bool, by_model: bool, output: Path | None
) -> None:
    """Two-way analysis of variance over all models given, or those of --model.

    RESULTS are results documents, folders with one, or tables in the form that `import` takes.
    """
    from pytest_llmenergy.analysis.anova import anova, record
    from pytest_llmenergy.campaign.results import write_json
    from pytest_llmenergy.report.anova_tables import anova_tables
    from pytest_llmenergy.report.tables import render

    observations = selected(chosen)
    analyses = [
        anova(observations, metric, log=log, by_model=by_model)
        for metric in metrics_named(metrics, observations, everywhere=True)
    ]
    if output is not None:
        write_json(
            output,
            {
                "schema": ANOVA_SCHEMA,
                "results": [{"path": d.path, "sha256": d.sha256} for d in observations.documents],
                "notes": observations.notes,
                "metrics": {analysis.metric: record(analysis) for analysis in analyses},
            },
        )
    for line in render([*anova_tables(analyses), *observations.notes]):
        click.echo(line)
