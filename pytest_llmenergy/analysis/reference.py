"""Ordinary least squares by statsmodels: what the paper used, and what our own algebra is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """What a regression table prints."""

    coefficients: Floats
    covariance: Floats
    predicted: Floats
    f: float
    p: float
    engine: str


def ols(x: Floats, y: Floats, *, intercept: bool) -> Regression:
    """Fit y = x b; `intercept` says whether a column of x is constant."""
    statsmodels = require("statsmodels", feature="the paper's fits", extra="analysis")
    from statsmodels.regression.linear_model import OLS

    fit = OLS(y, x, hasconst=intercept).fit()
    return Regression(
        coefficients=fit.params,
        covariance=fit.cov_params(),
        predicted=fit.fittedvalues,
        f=float(fit.fvalue),
        p=float(fit.f_pvalue),
        engine=f"statsmodels {statsmodels.__version__}",
    )
