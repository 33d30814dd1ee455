"""The table of an analysis of variance, as the paper's Table 2 has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.report.fit_tables import METRIC_NAMES
from pytest_llmenergy.report.tables import plain_table
from pytest_llmenergy.units import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

    from pytest_llmenergy.analysis.anova import Anova

_TERMS = {
    "tokens_in": "input tokens",
    "tokens_out": "output tokens",
    "interaction": "interaction",
    "residual": "residual",
}


def anova_tables(analyses: Iterable[Anova]) -> Iterator[Table | str]:
    """One table a metric."""
    for analysis in analyses:
        unit = "log " if analysis.log else ""
        kind = " (estimated)" if analysis.estimated else ""
        block = ", model as a factor" if analysis.by_model else ""
        count = len(analysis.models)
        models = analysis.models[0] if count == 1 else f"{count} models"
        table = plain_table(
            f"{unit}{METRIC_NAMES[analysis.metric]}{kind} of {analysis.n} trials of {models}{block}",
            "term",
            "sum of squares",
            "df",
            "F",
            "p",
            "partial ω²",
            left=1,
        )
        for row in analysis.rows:
            table.add_row(
                _TERMS[row.term],
                f"{row.sum_sq:.2e}",
                str(row.df),
                UNKNOWN if row.f is None else f"{row.f:.2f}",
                UNKNOWN if row.p is None else f"{row.p:.2e}",
                UNKNOWN if row.partial_omega_sq is None else f"{row.partial_omega_sq:.3f}",
            )
        yield table
        if analysis.empty_cells:
            yield (
                f"{analysis.empty_cells} combinations of token counts were not measured; the interaction is "
                "that of the others.\n"
            )
