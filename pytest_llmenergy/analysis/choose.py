"""Compare every form that suits a group, and choose the simplest that predicts as well as the best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.fits import CannotFitError, Fit, fit_form
from pytest_llmenergy.analysis.forms import form_named, forms_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llmenergy.analysis.cell_means import CellMeans, Group
    from pytest_llmenergy.analysis.verdict import Limits

AUTO = "auto"
_ROUNDING = 1e-3  # percent: between exact fits no digit is a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A group's metric that no form could be fitted to."""

    group: Group
    metric: str
    reason: str


def fit_all(
    every: Iterable[CellMeans],
    *,
    form: str = AUTO,
    intercept: bool = False,
    statsmodels: bool = False,
    limits: Limits | None = None,
) -> tuple[list[Fit], list[Skipped]]:
    """Fit every group and metric; those that cannot be fitted come with the reason.

    Args:
        every: the cells, a group and metric at a time.
        form: a form's name, or AUTO: all that suit the generation mode are compared.
        intercept: add a constant to the form.
        statsmodels: solve ordinary least squares by statsmodels.
        limits: of what is usable.
    """
    fits: list[Fit] = []
    skipped: list[Skipped] = []
    for cells in every:
        try:
            if form == AUTO:
                fits += compare(cells, limits=limits)
            else:
                named = form_named(form, intercept=intercept)
                fits.append(
                    replace(fit_form(cells, named, statsmodels=statsmodels, limits=limits), chosen=True)
                )
        except CannotFitError as error:
            skipped.append(Skipped(group=cells.group, metric=cells.metric, reason=str(error)))
    return fits, skipped


def compare(cells: CellMeans, *, limits: Limits | None = None) -> list[Fit]:
    """Fit every form that suits the generation mode and choose one: that of the fewest coefficients.

    It must come within one standard error of the best left-out error (Breiman's rule: what lies within the
    noise of the comparison is no reason for another coefficient). A form that is negative or falls within
    its range is chosen only where all do; one that may be negative anywhere (the paper's) only where there is
    no other.

    Raises:
        CannotFitError: not one form can be fitted; the message is that of the simplest.
    """
    fits: list[Fit] = []
    problems: list[CannotFitError] = []
    for form in sorted(forms_for(cells.group.kv_cache), key=lambda form: len(form.terms)):
        try:
            fits.append(fit_form(cells, form, limits=limits))
        except CannotFitError as error:
            problems.append(error)
    if not fits:
        raise problems[0]
    # A form that can go below zero somewhere is shown to compare with; it is not what anyone should route by.
    admissible = [fit for fit in fits if fit.form.nonnegative] or fits
    sound = [
        fit for fit in admissible if fit.verdict.is_monotone and not fit.verdict.is_negative
    ] or admissible
    best = min(sound, key=lambda fit: fit.loo_mape)
    near_enough = best.loo_mape + max(best.loo_mape_se, _ROUNDING)
    near = [fit for fit in sound if fit.loo_mape <= near_enough]
    simplest = min(near, key=lambda fit: (len(fit.form.terms), fit.loo_mape))
    return [replace(fit, chosen=fit is simplest) for fit in fits]
