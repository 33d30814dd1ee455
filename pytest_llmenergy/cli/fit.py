"""`llmenergy-report fit`: energy and runtime models from results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmenergy.cli.selection import METRICS, metrics_named, selected, selection

if TYPE_CHECKING:
    from pytest_llmenergy.analysis.across import Size
    from pytest_llmenergy.cli.selection import Selection

_FORMS = (
    "auto",
    "paper",
    "paper-relative",
    "token-pass-linear",
    "token-pass",
    "kv-cache-linear",
    "kv-cache",
)
_WITH_STATSMODELS = 200  # fits; more are solved by our own algebra, which equals it


@click.command("fit")
@selection
@click.option(
    "--form", type=click.Choice(_FORMS), default="auto", show_default=True, help="See docs/fits.md."
)
@click.option("--intercept", is_flag=True, help="Add a constant to the form.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(METRICS),
    help="energy is GPU, CPU and total; may be given several times.  [default: all that are known]",
)
@click.option(
    "--max-mape",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="The left-out error in percent above which a fit is not usable.",
)
@click.option("--across", is_flag=True, help="Cost per token against the models' active parameters.")
@click.option(
    "--active-parameters",
    "parameters",
    multiple=True,
    metavar="MODEL=ACTIVE[/ALL]",
    help="A model's parameters, where neither its results nor the presets have them.",
)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the fits document.")
def command(
    *,
    chosen: Selection,
    form: str,
    intercept: bool,
    metrics: tuple[str, ...],
    max_mape: float,
    across: bool,
    parameters: tuple[str, ...],
    output: Path | None,
) -> None:
    """Fit energy and runtime to token counts, per model and machine.

    RESULTS are results documents, folders with one, or tables in the form that `import` takes. The default
    form compares all that suit the generation mode by their error on cells left out.
    """
    from pytest_llmenergy.analysis.cell_means import cell_means
    from pytest_llmenergy.analysis.choose import AUTO, fit_all
    from pytest_llmenergy.analysis.fits_document import write_fits
    from pytest_llmenergy.analysis.verdict import Limits
    from pytest_llmenergy.errors import RequestError
    from pytest_llmenergy.report.fit_tables import across_tables, fit_tables
    from pytest_llmenergy.report.tables import render

    if intercept and form == AUTO:
        raise RequestError("--intercept goes with one form; --form auto tries both. Name a form, or drop it.")
    observations = selected(chosen)
    wanted = metrics_named(metrics, observations)
    every = [cells for cells in cell_means(observations) if cells.metric in wanted]
    fits, skipped = fit_all(
        every,
        form=form,
        intercept=intercept,
        statsmodels=form == "paper" and len(every) <= _WITH_STATSMODELS,
        limits=Limits(loo_mape=max_mape),
    )
    if not fits:
        raise RequestError(skipped[0].reason)
    lines = []
    if across:
        from pytest_llmenergy.analysis import across as scaling

        lines = scaling.across(fits, scaling.sizes(observations, _sizes(parameters)))
    if output is not None:
        write_fits(
            output,
            fits,
            skipped=skipped,
            documents=observations.documents,
            across=lines,
            notes=observations.notes,
        )
    for line in render([*fit_tables(fits, skipped), *across_tables(lines), *observations.notes]):
        click.echo(line)


def _sizes(given: tuple[str, ...]) -> dict[str, Size]:
    from pytest_llmenergy.analysis.across import Size
    from pytest_llmenergy.errors import RequestError

    found = {}
    for text in given:
        model, _, numbers = text.rpartition("=")
        active, _, every = numbers.partition("/")
        try:
            size = Size(active=float(active), total=float(every or active))
        except ValueError:
            size = Size(active=0, total=0)
        if not model or not 0 < size.active <= size.total < math.inf:
            raise RequestError(
                f"--active-parameters {text!r} is not MODEL=ACTIVE or MODEL=ACTIVE/ALL; "
                "write 'mistral-7b=7.2e9', say."
            )
        found[model] = size
    return found
