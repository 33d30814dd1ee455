"""Two-way analysis of variance: do tokens in, tokens out and their interaction matter, and how much.

Section 6.1 of Wilkins, Keshav, Mortier (HotCarbon'24), and its Table 2. Token counts are categories and sums
of squares of type 2: each main effect beside the other, the interaction beside both. They are differences
between nested models (statsmodels), so that a grid with holes has its tests too.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pytest_llmenergy.errors import RequestError, require

if TYPE_CHECKING:
    import pandas as pd

    from pytest_llmenergy.analysis.observations import Observations

_TERMS = {"tokens_in": "C(tokens_in)", "tokens_out": "C(tokens_out)"}
_ADDITIVE = "C(tokens_in) + C(tokens_out)"
_EVERY_CELL = "C(tokens_in) * C(tokens_out)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; the residual has no test."""

    term: str  # tokens_in, tokens_out, interaction or residual
    sum_sq: float
    df: int
    f: float | None = None
    p: float | None = None
    partial_omega_sq: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anova:
    """The analysis of one metric."""

    metric: str
    log: bool
    by_model: bool
    models: tuple[str, ...]
    n: int  # trials
    estimated: bool  # whether any joule of it is an estimate
    empty_cells: int  # combinations of token counts that were not measured
    rows: tuple[Row, ...]


def anova(observations: Observations, metric: str, *, log: bool = False, by_model: bool = False) -> Anova:
    """Analyse a metric's trials, over all models given.

    Args:
        observations: of one machine, batch size and generation mode.
        metric: one of observations.METRICS.
        log: take the logarithm: effects are then factors, and no model's size drowns the others'.
        by_model: take the model as a factor beside the tokens (a block).

    Raises:
        RequestError: cells of several machines, batch sizes or modes; a metric that is not known of every
            trial; one value of a token count only; nothing left to tell an effect from noise.
    """
    _refuse_mixture(observations)
    table = _rows(observations, metric, log=log)
    block = " + C(model)" if by_model else ""
    total = {
        name: _residual(f"{formula}{block}", table)
        for name, formula in (
            ("tokens_in", _TERMS["tokens_out"]),  # the model that lacks it
            ("tokens_out", _TERMS["tokens_in"]),
            ("interaction", _ADDITIVE),
            ("residual", _EVERY_CELL),
        )
    }
    left, df_left = total["residual"]
    if df_left < 1:
        raise RequestError(
            "nothing is left to tell an effect from noise: every trial is a cell of its own. Give several "
            "trials a cell, or several models measured on the same grid."
        )
    n = int(table["trials"].sum())
    residual = Row(term="residual", sum_sq=left, df=df_left)
    rows = []
    for term in ("tokens_in", "tokens_out", "interaction"):
        base, df_base = total["residual" if term == "interaction" else "interaction"]
        lacking, df_lacking = total[term]
        rows.append(_test(term, lacking - base, df_lacking - df_base, residual=residual, n=n))
    rows.append(residual)
    levels = table["tokens_in"].nunique() * table["tokens_out"].nunique()
    return Anova(
        metric=metric,
        log=log,
        by_model=by_model,
        models=tuple(sorted(set(table["model"]))),
        n=n,
        estimated=observations.is_estimated(metric),
        empty_cells=levels - len(table[["tokens_in", "tokens_out"]].drop_duplicates()),
        rows=tuple(rows),
    )


def _test(term: str, sum_sq: float, df: int, *, residual: Row, n: int) -> Row:
    from scipy.special import fdtrc

    if df < 1:
        return Row(term=term, sum_sq=sum_sq, df=df)
    mean_sq = residual.sum_sq / residual.df
    f = sum_sq / df / mean_sq if mean_sq else np.inf
    # Partial omega squared (Olejnik and Algina 2003); an effect below its noise has size 0.
    size = max(0.0, df * (f - 1) / (df * (f - 1) + n)) if np.isfinite(f) else 1.0
    return Row(
        term=term,
        sum_sq=sum_sq,
        df=df,
        f=float(f),
        p=float(fdtrc(df, residual.df, f)),
        partial_omega_sq=float(size),
    )


def _refuse_mixture(observations: Observations) -> None:
    for column, remedy in (
        (
            "machine",
            "Choose one with --system, give one machine's results, or take them for one with --pool.",
        ),
        ("batch_size", "Choose one with --batch-size."),
        ("kv_cache", "Choose one with --kv-cache or --no-kv-cache."),
    ):
        values = observations.cells[column].unique(maintain_order=True).to_list()
        if len(values) > 1:
            raise RequestError(f"these results are of {len(values)} kinds of {column}: {values}. {remedy}")


def _rows(observations: Observations, metric: str, *, log: bool) -> pd.DataFrame:
    """Trials of one model's cell as one row: their number, mean, and sum of squares around it.

    Least squares on these, weighted, is least squares on the trials; a million of them fit.
    """
    pandas = require("pandas", feature="the analysis of variance", extra="analysis")
    value = pl.col(metric).log() if log else pl.col(metric)
    unknown = observations.trials[metric].null_count()
    if unknown:
        raise RequestError(
            f"{metric} is unknown in {unknown} of {observations.trials.height} trials. "
            "Choose another --metric."
        )
    if log and observations.trials[metric].min() <= 0:  # type: ignore[operator]
        raise RequestError(f"{metric} is 0 in a trial, which has no logarithm. Leave out --log.")
    cells = observations.cells.with_row_index("cell").with_columns(pl.col("cell").cast(pl.Int64))
    rows = (
        observations.trials.join(cells, on="cell")
        .with_columns(value.alias("value"))
        .group_by("model", "tokens_in", "tokens_out", maintain_order=True)
        .agg(
            pl.len().alias("trials"),
            pl.col("value").mean().alias("mean"),
            ((pl.col("value") - pl.col("value").mean()) ** 2).sum().alias("within"),
        )
        .sort("model", "tokens_in", "tokens_out")
    )
    for axis in ("tokens_in", "tokens_out"):
        values = rows[axis].unique().to_list()
        if len(values) == 1:
            raise RequestError(f"every cell has {axis} {values[0]}; an analysis needs two values or more.")
    frame: pd.DataFrame = pandas.DataFrame(rows.to_dict(as_series=False))
    return frame


def _residual(formula: str, table: pd.DataFrame) -> tuple[float, int]:
    """The residual sum of squares of a model of the trials, and its degrees of freedom."""
    require("statsmodels", feature="the analysis of variance", extra="analysis")
    from statsmodels.formula.api import wls

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a grid with holes has fewer independent columns: see the rank below
        fit = wls(f"mean ~ {formula}", table, weights=table["trials"]).fit()
    trials = int(table["trials"].sum())
    return float(fit.ssr + table["within"].sum()), trials - int(np.linalg.matrix_rank(fit.model.exog))


def record(analysis: Anova) -> dict[str, Any]:
    """As it stands in anova.json."""
    return {
        "n": analysis.n,
        "provenance": "estimated" if analysis.estimated else "measured",
        "models": analysis.models,
        "log": analysis.log,
        "by_model": analysis.by_model,
        "empty_cells": analysis.empty_cells,
        "rows": [
            {
                "term": row.term,
                "sum_sq": row.sum_sq,
                "df": row.df,
                "f": row.f,
                "p": row.p,
                "partial_omega_sq": row.partial_omega_sq,
            }
            for row in analysis.rows
        ],
    }
