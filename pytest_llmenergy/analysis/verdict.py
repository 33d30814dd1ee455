"""Whether a fit may be used, and why not.

A high R2 says little: the paper's form reaches 0.97 with negative energies in a fifth of its cells. So a fit
is judged by what it predicts of cells it has not seen, and by its shape within its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.analysis import forms
from pytest_llmenergy.units import format_percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.cell_means import CellMeans
    from pytest_llmenergy.analysis.forms import Form
    from pytest_llmenergy.analysis.solve import Solution

    Floats = NDArray[np.floating]

_ROUNDING = 1e-9
_WHOLE = 100  # percent, from which a digit after the point says nothing
_CARRIES = 1.0  # Cook's distance from which one cell moves a fit by its own standard error (Cook 1977)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a usable fit must keep."""

    loo_mape: float = 20.0  # percent
    share_of_constant: float = 0.5  # its error against that of one constant for all cells
    df_resid: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reasons` say why a fit is not usable; `cautions` what to bear in mind of one that is."""

    reasons: tuple[str, ...]
    cautions: tuple[str, ...]
    is_negative: bool  # somewhere within its range
    is_monotone: bool  # never falls as tokens rise, within its range

    @property
    def is_usable(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


def judge(cells: CellMeans, form: Form, solution: Solution, limits: Limits) -> Verdict:
    """Look at a fit's predictions, seen and unseen."""
    cost = "runtime" if cells.metric == "runtime_s" else "energy"
    is_negative, is_monotone = _shape(cells, form, solution.coefficients)
    reasons = []
    negative = int((solution.predicted < 0).sum())
    if is_negative or negative:
        where = f"in {negative} of {len(cells.mean)} cells" if negative else "between its cells"
        reasons.append(f"predicts negative {cost} {where}")
    if not is_monotone:
        reasons.append(f"predicts less {cost} for more tokens within its range")
    missed = _mape(solution.left_out, cells.mean)
    if not missed <= limits.loo_mape:  # so, since an error that is NaN is no small one
        reasons.append(
            f"misses a cell it has not seen by {_percent(missed)} on average, above {limits.loo_mape:g} %"
        )
    if not missed <= limits.share_of_constant * cells.error_of_constant:
        constant = _percent(cells.error_of_constant)
        reasons.append(f"is hardly better than a constant, which misses them by {constant}")
    if solution.df_resid < limits.df_resid:
        reasons.append(f"has {len(cells.mean)} cells for {len(form.terms)} coefficients")
    return Verdict(
        reasons=tuple(reasons),
        cautions=tuple(_cautions(cells, solution)),
        is_negative=is_negative or negative > 0,
        is_monotone=is_monotone,
    )


def _cautions(cells: CellMeans, solution: Solution) -> list[str]:
    cautions = []
    if cells.estimated:
        whole = "the total holds an estimate" if cells.metric == "energy_j" else "the energy is an estimate"
        cautions.append(f"{whole}, not measurements alone")
    if cells.left_out:
        cautions.append(f"{cells.left_out} cells are left out: {cells.metric} is unknown or 0 there")
    cautions += [
        f"the cell {cells.tokens_in[i]} in, {cells.tokens_out[i]} out carries the fit "
        f"(Cook's distance {solution.cooks_distance[i]:.3g})"
        for i in np.flatnonzero(solution.cooks_distance > _CARRIES)
    ]
    if cells.noise_floor_mape is None:
        cautions.append("one trial a cell: its noise is not known")
    return cautions


def _shape(cells: CellMeans, form: Form, coefficients: Floats) -> tuple[bool, bool]:
    """Whether it goes below zero, and whether it never falls, within the range of its cells."""
    if form.nonnegative:
        return False, True  # every column is positive and grows with either count
    predicted = forms.lattice_design(form.terms, cells.ranges) @ coefficients
    slack = _ROUNDING * np.abs(predicted).max()
    falls = any((np.diff(predicted, axis=axis) < -slack).any() for axis in (0, 1))
    return bool((predicted < -slack).any()), not falls


def _percent(error: float) -> str:
    return format_percent(error / 100, 1 if error < _WHOLE else 0)


def _mape(predicted: Floats, truth: Floats) -> float:
    return float(100 * np.abs(predicted / truth - 1).mean())
