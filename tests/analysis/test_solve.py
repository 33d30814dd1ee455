"""The algebra, held to statsmodels and to brute force."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize

from pytest_llmenergy.analysis import forms, solve
from pytest_llmenergy.analysis.huber import Huber
from pytest_llmenergy.analysis.reference import ols

AXIS = np.array([8, 32, 128, 512, 2048])
T, N = (axis.ravel() for axis in np.meshgrid(AXIS, AXIS))
TOKEN_PASS = forms.form_named("token-pass")


def _costs(seed: int, noise: float = 0.1, terms: tuple[float, ...] = (4.0, 0.03, 4e-6)) -> np.ndarray:
    draw = np.random.default_rng(seed)
    clean = forms.design(TOKEN_PASS.terms, T, N) @ np.array(terms)
    return clean * np.exp(noise * draw.standard_normal(len(clean)))


@pytest.mark.parametrize("intercept", [False, True])
def test_ordinary_least_squares_is_that_of_statsmodels(intercept: bool) -> None:
    """Coefficients, errors, leverage, influence and left-out residuals agree to ten digits."""
    x = forms.design(forms.form_named("paper", intercept=intercept).terms, T, N)
    y = _costs(1)
    ours, theirs = solve.ordinary(x, y), sm.OLS(y, x, hasconst=intercept).fit()
    influence = theirs.get_influence()
    for mine, reference in (
        (ours.coefficients, theirs.params),
        (ours.standard_errors, theirs.bse),
        (ours.covariance, theirs.cov_params()),
        (ours.leverage, influence.hat_matrix_diag),
        (ours.cooks_distance, influence.cooks_distance[0]),
        (y - ours.left_out, influence.resid_press),
        (ours.scale, np.sqrt(theirs.mse_resid)),
    ):
        np.testing.assert_allclose(mine, reference, rtol=1e-10, atol=1e-10 * np.abs(reference).max())
    np.testing.assert_allclose(ols(x, y, intercept=intercept).coefficients, ours.coefficients, rtol=1e-10)


def test_the_robust_fit_is_that_of_statsmodels() -> None:
    """Where no bound holds it, it is RLM with Huber's T, and its covariance is H1."""
    x, y = forms.design(TOKEN_PASS.terms, T, N), _costs(2)
    ours = solve.relative(x, y)
    theirs = sm.RLM(np.ones(len(y)), x / y[:, None]).fit(update_scale=False, tol=1e-13, maxiter=1000)
    assert (ours.coefficients > 0).all()
    np.testing.assert_allclose(ours.coefficients, theirs.params, rtol=1e-9)
    np.testing.assert_allclose(ours.standard_errors, theirs.bse, rtol=1e-9)


def test_a_bounded_fit_is_the_best_that_is_not_negative() -> None:
    """Among all non-negative coefficients none has a smaller loss (scipy's minimiser finds the same)."""
    y = _costs(3, noise=0.15, terms=(4.0, 0.03, 0.0))
    x = forms.design(TOKEN_PASS.terms, T, N)
    seed = next(s for s in range(100) if solve.relative(x, _bounded(s)).free.min() < 0)
    y = _bounded(seed)
    ours = solve.relative(x, y)
    assert ours.coefficients.min() == 0
    rows = x / y[:, None]
    length = np.linalg.norm(rows, axis=0)
    cut = (
        solve.TUNING
        * np.median(np.abs(1 - rows @ np.linalg.lstsq(rows, np.ones(len(y)))[0]))
        / 0.6744897501960817
    )

    def loss(scaled: np.ndarray) -> float:
        size = np.abs(1 - (rows / length) @ scaled)
        return float(np.where(size <= cut, size**2 / 2, cut * size - cut**2 / 2).sum())

    best = minimize(
        loss, np.ones(3), bounds=[(0, None)] * 3, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12}
    )
    assert loss(ours.coefficients * length) <= best.fun * (1 + 1e-9)


def test_no_coefficient_at_zero_wants_to_leave_it() -> None:
    """Karush, Kuhn and Tucker's conditions, on columns of which one put to zero may have to come back."""
    bounded = 0
    for seed in range(800):
        source = np.random.default_rng(seed)
        rows = source.uniform(0, 1, (source.integers(6, 30), source.integers(3, 6))) ** (1 + seed % 4)
        rows /= np.linalg.norm(rows, axis=0)
        start = np.linalg.lstsq(rows, np.ones(len(rows)))[0]
        cut = 2 * float(np.median(np.abs(1 - rows @ start)))
        robust = Huber(rows, cut)
        free = robust.fit(start)
        if free.min() >= 0:
            continue
        bounded += 1
        found = robust.fit_nonnegative(free)
        pull = np.clip(1 - rows @ found, -cut, cut) @ rows
        assert found.min() >= 0
        assert pull.max() < 1e-6
        assert np.abs(pull[found > 0]).max() < 1e-6
    assert bounded > 100


def _bounded(seed: int) -> np.ndarray:
    return _costs(seed, noise=0.15, terms=(4.0, 0.03, 0.0))


@pytest.mark.parametrize("terms", [(4.0, 0.03, 4e-6), (4.0, 0.03, 0.0)], ids=["free", "at the bound"])
@pytest.mark.parametrize("seed", range(5))
def test_leaving_a_cell_out_is_fitting_the_others(seed: int, terms: tuple[float, ...]) -> None:
    """Each left-out prediction is that of a fit of its own to all other cells."""
    x, y = forms.design(TOKEN_PASS.terms, T, N), _costs(seed, noise=0.15, terms=terms)
    found = solve.relative(x, y).left_out
    problem = solve._Problem.of(x / y[:, None], np.ones(len(y)))
    scale = np.median(np.abs(1 - problem.rows @ problem.free)) / 0.6744897501960817
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        robust = Huber(problem.rows[others], solve.TUNING * scale)
        alone = problem.rows[i] @ robust._reweighted(nonnegative=True) * y[i]
        assert found[i] == pytest.approx(alone, rel=1e-7)


def test_one_bad_cell_does_not_bend_the_fit() -> None:
    """A short cell counted three times too high moves the fit a fifth as far as it moves least squares."""
    x, y = forms.design(TOKEN_PASS.terms, T, N), _costs(4, noise=0.01)
    bad = y.copy()
    bad[0] *= 3
    robust = solve.relative(x, bad).predicted / solve.relative(x, y).predicted - 1

    def least_squares(costs: np.ndarray) -> np.ndarray:
        return x @ np.linalg.lstsq(x / costs[:, None], np.ones(len(costs)), rcond=None)[0]

    free = least_squares(bad) / least_squares(y) - 1
    assert np.abs(robust).max() < np.abs(free).max() / 5


def test_noiseless_costs_give_their_coefficients_back() -> None:
    """Without noise the truth is found to rounding, and the scale is nothing."""
    solution = solve.relative(forms.design(TOKEN_PASS.terms, T, N), _costs(0, noise=0))
    np.testing.assert_allclose(solution.coefficients, (4.0, 0.03, 4e-6), rtol=1e-9)
    assert solution.scale < 1e-9


@pytest.mark.parametrize("fit", [solve.ordinary, solve.relative])
def test_columns_that_say_the_same_are_refused(fit) -> None:
    """Two equal columns, a column of zeros, fewer rows than columns."""
    column = np.arange(1.0, 9.0)
    for x in (
        np.stack([column, column], axis=1),
        np.stack([column, 0 * column], axis=1),
        np.ones((2, 3)) * np.arange(1, 4),
    ):
        with pytest.raises(solve.RankDeficientError):
            fit(x, np.ones(len(x)))
