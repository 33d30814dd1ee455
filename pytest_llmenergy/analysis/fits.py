"""Fit a form to a group's cells, and say how well it predicts what it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy import student_t
from pytest_llmenergy.analysis import forms, solve, verdict
from pytest_llmenergy.analysis.energy_model import EnergyModel
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.cell_means import CellMeans
    from pytest_llmenergy.analysis.forms import Form

    Floats = NDArray[np.floating]

CONFIDENCE = 0.95
_LEAST_RATIO = 1.5  # of the largest to the smallest token count; below, it is one value and its scatter


class CannotFitError(RequestError):
    """A group's cells do not allow the form."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A form fitted to one metric of a group's cells, with what is known of its errors."""

    cells: CellMeans
    form: Form
    solution: solve.Solution
    f: float | None  # of ordinary least squares alone
    p: float | None
    engine: str  # what solved it
    verdict: verdict.Verdict
    chosen: bool = False

    @property
    def n(self) -> int:
        """Cells."""
        return len(self.cells.mean)

    @cached_property
    def r2_uncentred(self) -> float:
        """1 - SSE / sum of y^2."""
        return _r2(self.cells.mean, self.solution.predicted, centre=0.0)

    @cached_property
    def r2_centred(self) -> float:
        """1 - SSE / sum of (y - mean)^2; NaN where all cells cost the same."""
        return _r2(self.cells.mean, self.solution.predicted, centre=float(self.cells.mean.mean()))

    @property
    def r2(self) -> float:
        """As statsmodels prints it: uncentred where the form has no intercept."""
        return self.r2_centred if self.form.intercept else self.r2_uncentred

    @cached_property
    def intervals(self) -> Floats:
        """Of the coefficients at CONFIDENCE, (k, 2).

        A coefficient that cannot be negative has its interval cut at zero; it is that of the free solution,
        so that it covers the truth also where the coefficient was held at its bound.
        """
        solution = self.solution
        half = student_t.quantile(CONFIDENCE, solution.df_resid) * solution.standard_errors
        low, high = solution.free - half, solution.free + half
        if self.form.nonnegative:
            low = np.minimum(np.maximum(low, 0.0), solution.coefficients)
            high = np.maximum(high, solution.coefficients)
        return np.stack([low, high], axis=1)

    @cached_property
    def left_out_error(self) -> Floats:
        """Of each cell as a fraction, predicted by the fit to all other cells."""
        result: Floats = self.solution.left_out / self.cells.mean - 1
        return result

    @cached_property
    def loo_mape(self) -> float:
        """Mean absolute percentage error of cells left out."""
        return float(100 * np.abs(self.left_out_error).mean())

    @cached_property
    def loo_mape_se(self) -> float:
        """Its standard error over the cells."""
        return float(100 * np.abs(self.left_out_error).std(ddof=1) / math.sqrt(self.n))

    @property
    def loo_mdape(self) -> float:
        """Median absolute percentage error of cells left out."""
        return 100 * solve.median(np.abs(self.left_out_error))

    @property
    def loo_wape(self) -> float:
        """Sum of absolute errors over the sum of costs, in percent: the bill, where MAPE is the query."""
        error = np.abs(self.solution.left_out - self.cells.mean).sum()
        return float(100 * error / self.cells.mean.sum())

    @property
    def loo_coverage(self) -> float | None:
        """Share of cells inside the interval (at CONFIDENCE) around their left-out prediction."""
        mean, low, high = self.energy_model().predict(
            self.cells.tokens_in, self.cells.tokens_out, interval=CONFIDENCE
        )
        if low is None or high is None:
            return None
        shift = self.solution.left_out - mean
        return float(((self.cells.mean >= low + shift) & (self.cells.mean <= high + shift)).mean())

    @property
    def worst_cell(self) -> int:
        """The index of the cell that is missed most when left out."""
        return int(np.abs(self.left_out_error).argmax())

    @property
    def negative_cells(self) -> int:
        """Cells whose predicted cost is below zero."""
        return int((self.solution.predicted < 0).sum())

    @property
    def influential_cells(self) -> NDArray[np.intp]:
        """Indices of cells with Cook's distance above 4 / n, the largest first."""
        distance = self.solution.cooks_distance
        order = np.argsort(-distance, kind="stable")
        return order[distance[order] > 4 / self.n]

    def energy_model(self, *, results_sha256: tuple[str, ...] = ()) -> EnergyModel:
        """The fit as others use it."""
        group = self.cells.group
        values = self.solution.coefficients.tolist()
        return EnergyModel(
            model=group.model,
            system=group.system,
            metric=self.cells.metric,
            form=self.form.name,
            coefficients=dict(zip(self.form.terms, values, strict=True)),
            n_gpus=group.n_gpus,
            batch_size=group.batch_size,
            kv_cache=group.kv_cache,
            covariance=tuple(tuple(row) for row in self.solution.covariance.tolist()),
            residual_scale=self.solution.scale,
            relative=self.form.relative,
            df_resid=self.solution.df_resid,
            tokens_in_range=self.cells.ranges[0],
            tokens_out_range=self.cells.ranges[1],
            provenance="estimated" if self.cells.estimated else "measured",
            is_usable=self.verdict.is_usable,
            reasons=self.verdict.reasons,
            fingerprint=group.fingerprint,
            results_sha256=results_sha256,
            chosen=self.chosen,
        )


def fit_form(
    cells: CellMeans, form: Form, *, statsmodels: bool = False, limits: verdict.Limits | None = None
) -> Fit:
    """Fit a form.

    Args:
        cells: at least one more than the form has coefficients.
        form: ordinary least squares or relative errors, as it says.
        statsmodels: solve ordinary least squares by statsmodels instead of our own algebra.
        limits: of what is usable.

    Raises:
        CannotFitError: too few cells, or an axis along which they do not differ; the message names it.
    """
    refuse_flat_axis(cells)
    k = len(form.terms)
    if len(cells.mean) <= k:
        raise CannotFitError(
            f"{cells.group.label}: the form {form.label} has {k} coefficients and needs {k + 1} cells or "
            f"more; there are {len(cells.mean)}. Measure more token counts."
        )
    x = forms.design(form.terms, cells.tokens_in, cells.tokens_out)
    try:
        solution = (solve.relative if form.relative else solve.ordinary)(x, cells.mean)
    except solve.RankDeficientError:
        raise CannotFitError(
            f"{cells.group.label}: the form {form.label} cannot tell its {k} coefficients apart on these "
            "cells. Measure a grid: every tokens_in with every tokens_out, three or more of each."
        ) from None
    f = p = None
    engine = "numpy"
    if not form.relative:
        f, p = _f_test(cells.mean, solution, intercept=form.intercept)
        if statsmodels:
            from pytest_llmenergy.analysis import reference

            table = reference.ols(x, cells.mean, intercept=form.intercept)
            solution = replace(
                solution,
                coefficients=table.coefficients,
                free=table.coefficients,
                covariance=table.covariance,
                predicted=table.predicted,
            )
            f, p, engine = table.f, table.p, table.engine
    return Fit(
        cells=cells,
        form=form,
        solution=solution,
        f=f,
        p=p,
        engine=engine,
        verdict=verdict.judge(cells, form, solution, limits or verdict.Limits()),
    )


def refuse_flat_axis(cells: CellMeans) -> None:
    """Refuse cells that all have about the same tokens_in, or the same tokens_out.

    Raises:
        CannotFitError: they do; the message names the axis.
    """
    options = (("tokens_in", "--llm-energy-tokens-in"), ("tokens_out", "--llm-energy-tokens-out"))
    for (axis, option), (least, most) in zip(options, cells.ranges, strict=True):
        if most < _LEAST_RATIO * least:
            have = f"{axis} {least}" if least == most else f"{axis} between {least} and {most}"
            raise CannotFitError(
                f"{cells.group.label}: every cell has {have}, so what a token of it costs cannot be told. "
                f"Measure other {axis} too ({option} 8,32,128), and give all the results together."
            )


def _r2(y: Floats, predicted: Floats, *, centre: float) -> float:
    total = float((y - centre) @ (y - centre))
    return 1 - float((y - predicted) @ (y - predicted)) / total if total else math.nan


def _f_test(y: Floats, solution: solve.Solution, *, intercept: bool) -> tuple[float, float]:
    """F and p of all coefficients but the intercept, as a regression table prints them."""
    from scipy.special import fdtrc

    residual = y - solution.predicted
    left = float(residual @ residual)
    centre = y.mean() if intercept else 0.0
    total = float((y - centre) @ (y - centre))
    df_model = len(solution.coefficients) - intercept
    f = (total - left) / df_model / (left / solution.df_resid) if left else math.inf
    return f, float(fdtrc(df_model, solution.df_resid, f))
