"""Fits to costs whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_llmenergy.analysis import forms
from pytest_llmenergy.analysis.choose import compare, fit_all
from pytest_llmenergy.analysis.fits import CannotFitError, fit_form
from pytest_llmenergy.analysis.fits_document import write_fits
from pytest_llmenergy.analysis.forms import form_named
from pytest_llmenergy.analysis.verdict import Limits
from tests.doubles.cells import drawn

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_PASS = {"steps": 4.0, "token_passes": 0.027, "attended_pairs": 5e-6}
KV_CACHE = {
    "(intercept)": 6.0,
    "tokens_in": 0.03,
    "tokens_in^2": 4e-6,
    "decode_steps": 5.0,
    "context_reads": 2e-4,
}
PAPER = {"tokens_in": 0.5, "tokens_out": 30.0, "tokens_in*tokens_out": 0.04}


def _chosen(cells, **options):
    return next(fit for fit in compare(cells, **options) if fit.chosen)


@pytest.mark.parametrize(
    ("form", "truth"),
    [
        ("token-pass", TOKEN_PASS),
        ("token-pass", {**TOKEN_PASS, "attended_pairs": 0.0}),
        ("kv-cache", KV_CACHE),
        ("paper-relative", PAPER),
    ],
    ids=["token-pass", "token-pass without attention", "kv-cache", "paper"],
)
def test_intervals_cover_the_scripted_coefficients(form: str, truth: dict[str, float]) -> None:
    """The truth lies in its 95 % interval about 95 % of the time, also a truth of zero at the bound."""
    inside = []
    for seed in range(150):
        fit = fit_form(drawn(truth, seed=seed), form_named(form))
        values = np.array(list(truth.values()))
        inside.append((fit.intervals[:, 0] <= values) & (values <= fit.intervals[:, 1]))
    covered = np.mean(inside, axis=0)
    assert (covered > 0.90).all(), covered
    assert covered.mean() < 0.995


@pytest.mark.parametrize("interval", [0.8, 0.95])
def test_prediction_intervals_cover_new_cells(interval: float) -> None:
    """New cells inside the range, of a chosen form: as many in the interval as it promises."""
    draw = np.random.default_rng(9)
    inside = []
    for seed in range(60):
        model = _chosen(drawn(TOKEN_PASS, seed=seed, noise=0.08, trials=1)).energy_model()
        t, n = np.exp(draw.uniform(np.log(8), np.log(2048), (2, 40))).round()
        cost = forms.design(tuple(TOKEN_PASS), t, n) @ np.array(list(TOKEN_PASS.values()))
        measured = cost * (1 + 0.08 * draw.standard_normal(40))
        _, low, high = model.predict(t, n, interval=interval)
        inside.append((low <= measured) & (measured <= high))
    assert np.mean(inside) == pytest.approx(interval, abs=0.025)


def test_the_paper_s_intervals_cover_its_own_costs() -> None:
    """Ordinary least squares with the same joules of noise on every cell, as its theory asks."""
    draw = np.random.default_rng(5)
    cells = drawn(PAPER, noise=0)
    inside = []
    for _ in range(200):
        noisy = replace(cells, mean=cells.mean + 100 * draw.standard_normal(len(cells.mean)) + 1e4)
        model = fit_form(noisy, form_named("paper", intercept=True)).energy_model()
        measured = float(forms.design(tuple(PAPER), 100, 700) @ np.array(list(PAPER.values())))
        measured += 1e4 + 100 * draw.standard_normal()
        _, low, high = model.predict(100, 700, interval=0.95)
        inside.append(low <= measured <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(
    ("truth", "kv_cache", "chosen"),
    [
        (TOKEN_PASS, False, {"token-pass"}),
        ({"steps": 4.0, "token_passes": 0.03}, False, {"token-pass-linear"}),
        ({"(intercept)": 60.0, **TOKEN_PASS}, False, {"token-pass + constant"}),
        (KV_CACHE, True, {"kv-cache"}),
        (PAPER, False, {"paper", "paper-relative"}),
        (TOKEN_PASS, None, {"token-pass"}),
        (KV_CACHE, None, {"kv-cache"}),
    ],
)
def test_the_form_that_was_scripted_wins(
    truth: dict[str, float], kv_cache: bool | None, chosen: set[str]
) -> None:
    """Also where the generation mode is not known; and the winner is usable."""
    fits = compare(drawn(truth, noise=0.01, kv_cache=kv_cache))
    winner = next(fit for fit in fits if fit.chosen)
    assert winner.form.label in chosen
    assert winner.verdict.is_usable
    assert sum(fit.chosen for fit in fits) == 1
    if kv_cache is not None:
        assert all(fit.form.kv_cache in (None, kv_cache) for fit in fits)


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_pure_noise_is_not_usable(noise: float) -> None:
    """Costs that tokens have nothing to do with, small scatter or large: no form is usable."""
    cells = drawn({"(intercept)": 100.0}, noise=0, trials=1)
    draw = np.random.default_rng(3)
    noisy = replace(cells, mean=100 * np.exp(noise * draw.standard_normal(len(cells.mean))))
    fits = compare(noisy)
    assert not any(fit.verdict.is_usable for fit in fits)
    assert "hardly better than a constant" in " ".join(next(f for f in fits if f.chosen).verdict.reasons)


def test_a_form_that_goes_below_zero_is_never_usable() -> None:
    """The paper's form on token-pass costs: a centred R2 above 0.95, and negative energy."""
    fit = fit_form(drawn(TOKEN_PASS), form_named("paper"), limits=Limits(loo_mape=1e9, share_of_constant=1e9))
    assert fit.r2_centred > 0.95
    assert fit.negative_cells > 0
    assert not fit.verdict.is_usable
    assert fit.verdict.reasons[0].startswith(f"predicts negative energy in {fit.negative_cells} of 81 cells")


def test_a_form_that_goes_below_zero_between_its_cells_is_found() -> None:
    """Negative at a corner of the range that no cell stands on."""
    grid = [(8, 512), (8, 2048), (8, 64), (64, 64), (512, 64), (2048, 512), (2048, 2048)]
    cells = drawn(
        {"tokens_in": -12.0, "tokens_out": 300.0, "tokens_in*tokens_out": 0.01}, grid=grid, noise=0.0
    )
    assert cells.mean.min() > 0
    fit = fit_form(cells, form_named("paper"))
    assert fit.negative_cells == 0
    assert fit.verdict.reasons[0] == "predicts negative energy between its cells"


def test_a_form_that_falls_with_more_tokens_is_not_usable() -> None:
    """A prompt that seems to cost less the longer it is."""
    truth = {"(intercept)": 1e5, "tokens_in": -10.0, "tokens_out": 300.0, "tokens_in*tokens_out": 0.001}
    fit = fit_form(drawn(truth, noise=0.001), form_named("paper", intercept=True))
    assert not fit.verdict.is_negative
    assert fit.verdict.reasons == ("predicts less energy for more tokens within its range",)


def test_the_noise_floor_is_that_of_the_means() -> None:
    """Trials scatter by 5 %, four a cell: no form can miss the means by less than 2 % on average."""
    cells = drawn(TOKEN_PASS, noise=0.05, trials=4)
    assert cells.noise_floor_mape == pytest.approx(100 * 0.05 / 2 * np.sqrt(2 / np.pi), rel=0.15)
    fit = _chosen(cells)
    assert fit.loo_mape == pytest.approx(cells.noise_floor_mape, rel=0.25)
    single = drawn(TOKEN_PASS, trials=1)
    assert single.noise_floor_mape is None
    assert "its noise is not known" in " ".join(_chosen(single).verdict.cautions)


def test_a_cell_that_carries_the_fit_is_named() -> None:
    """One far cell with a cost of its own: Cook's distance finds it."""
    grid = [(8, n) for n in (8, 16, 32)] + [(16, n) for n in (8, 16, 32)] + [(2048, 2048)]
    cells = drawn(PAPER, grid=grid, noise=0.05, trials=1)
    fit = fit_form(cells, form_named("paper"))
    assert int(fit.influential_cells[0]) == 6
    assert any("2048 in, 2048 out carries the fit" in caution for caution in fit.verdict.cautions)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([(32, n) for n in (8, 64, 512, 2048)], "every cell has tokens_in 32.*--llm-energy-tokens-in"),
        ([(t, 32) for t in (8, 64, 512, 2048)], "every cell has tokens_out 32.*--llm-energy-tokens-out"),
        ([(t, n) for t in (30, 32) for n in (8, 64, 512)], "tokens_in between 30 and 32"),
        ([(8, 8), (64, 64)], "needs . cells or more; there are 2"),
    ],
)
@pytest.mark.parametrize("form", ["auto", "paper", "token-pass"])
def test_a_grid_that_cannot_tell_is_refused(grid: list[tuple[int, int]], message: str, form: str) -> None:
    """Each axis needs its values, whatever the form; the message says which is missing."""
    fits, skipped = fit_all([drawn(TOKEN_PASS, grid=grid)], form=form)
    assert fits == []
    with pytest.raises(CannotFitError, match=message):
        raise CannotFitError(skipped[0].reason)


def test_tokens_that_rise_together_are_refused() -> None:
    """A diagonal has values on both axes and cannot tell them apart."""
    diagonal = [(t, t) for t in (8, 16, 64, 256, 1024)]
    with pytest.raises(CannotFitError, match="cannot tell its 3 coefficients apart"):
        fit_form(drawn(PAPER, grid=diagonal), form_named("paper"))


def test_statsmodels_and_our_algebra_tell_the_same() -> None:
    """The engine changes no digit that anybody prints."""
    for intercept in (False, True):
        form = form_named("paper", intercept=intercept)
        ours = fit_form(drawn(TOKEN_PASS), form)
        theirs = fit_form(drawn(TOKEN_PASS), form, statsmodels=True)
        assert theirs.engine.startswith("statsmodels ")
        np.testing.assert_allclose(ours.intervals, theirs.intervals, rtol=1e-9)
        np.testing.assert_allclose([ours.f, ours.p, ours.r2], [theirs.f, theirs.p, theirs.r2], rtol=1e-9)


def test_intervals_and_predictions_are_those_of_statsmodels_on_few_cells() -> None:
    """Student's t with the degrees of freedom that few cells leave, not the normal's."""
    from statsmodels.regression.linear_model import OLS

    grid = [(8, 8), (8, 64), (64, 8), (64, 64), (32, 16)]
    cells = drawn(PAPER, noise=0.1, grid=grid)
    fit = fit_form(cells, form_named("paper"))
    theirs = OLS(cells.mean, forms.design(fit.form.terms, cells.tokens_in, cells.tokens_out)).fit()
    np.testing.assert_allclose(fit.intervals, theirs.conf_int(0.05), rtol=1e-9)
    new = theirs.get_prediction(forms.design(fit.form.terms, [16], [48])).summary_frame(alpha=0.05)
    mean, low, high = fit.energy_model().predict([16], [48], interval=0.95)
    np.testing.assert_allclose(
        [mean[0], low[0], high[0]], new[["mean", "obs_ci_lower", "obs_ci_upper"]].to_numpy()[0], rtol=1e-9
    )


def test_errors_are_of_cells_that_the_fit_has_not_seen() -> None:
    """Each figure from refits without the cell: mean, median, share of the sum, and how many were covered."""
    grid = [(t, n) for t in (8, 32, 128, 512) for n in (8, 64, 256)]
    cells = drawn(TOKEN_PASS, noise=0.2, trials=1, grid=grid, seed=4)
    form = form_named("paper")
    fit = fit_form(cells, form)
    whole = fit.energy_model()
    predicted, covered = [], 0
    for i in range(len(grid)):
        keep = np.arange(len(grid)) != i
        columns = ("tokens_in", "tokens_out", "mean", "deviation", "trials")
        others = replace(cells, **{name: getattr(cells, name)[keep] for name in columns})
        t, n = cells.tokens_in[i], cells.tokens_out[i]
        predicted.append(float(fit_form(others, form).energy_model().predict(t, n).mean))
        mean, low, high = whole.predict(t, n, interval=0.95)
        covered += bool(low - mean <= cells.mean[i] - predicted[-1] <= high - mean)
    error = np.abs(np.array(predicted) - cells.mean)
    assert fit.loo_mape == pytest.approx(100 * np.mean(error / cells.mean))
    assert fit.loo_mdape == pytest.approx(100 * np.median(error / cells.mean))
    assert fit.loo_wape == pytest.approx(100 * error.sum() / cells.mean.sum())
    assert fit.loo_coverage == covered / len(grid)
    assert 0 < covered < len(grid)


def test_influential_cells_stand_in_order_of_cook_s_distance() -> None:
    """Those above 4/n, the largest first; statsmodels' distances."""
    from statsmodels.regression.linear_model import OLS

    cells = drawn(TOKEN_PASS, noise=0.05)
    fit = fit_form(cells, form_named("paper"))
    x = forms.design(fit.form.terms, cells.tokens_in, cells.tokens_out)
    distance = OLS(cells.mean, x).fit().get_influence().cooks_distance[0]
    above = [i for i in np.argsort(-distance) if distance[i] > 4 / len(distance)]
    assert len(above) > np.count_nonzero(distance > 1) + 1
    assert fit.influential_cells.tolist() == above


def test_a_form_within_the_noise_of_the_best_is_taken_where_it_is_simpler() -> None:
    """An error smaller by less than its own standard error is no reason for another coefficient."""
    truth = {"steps": 4.0, "token_passes": 0.03}
    simpler = 0
    for seed in range(12):
        fits = compare(drawn(truth, noise=0.1, trials=1, seed=seed))
        best = min((fit for fit in fits if fit.form.nonnegative), key=lambda fit: fit.loo_mape)
        chosen = next(fit for fit in fits if fit.chosen)
        assert chosen.form.label == "token-pass-linear"
        assert chosen.loo_mape <= best.loo_mape + best.loo_mape_se
        simpler += len(chosen.form.terms) < len(best.form.terms)
    assert simpler >= 2


def test_a_fit_that_halves_no_error_of_a_constant_is_not_usable() -> None:
    """Costs that hardly follow the tokens: better than a constant, and not by half."""
    cells = drawn({"(intercept)": 100.0, "steps": 0.02}, noise=0.1, trials=1)
    fit = fit_form(cells, form_named("token-pass-linear", intercept=True), limits=Limits(loo_mape=1e9))
    assert 0.5 * cells.error_of_constant < fit.loo_mape < cells.error_of_constant
    assert "hardly better than a constant" in " ".join(fit.verdict.reasons)


def test_limits_are_the_user_s() -> None:
    """A fit that misses by 3 % is usable, unless 1 % is asked for."""
    cells = drawn(TOKEN_PASS, noise=0.06, trials=1)
    assert _chosen(cells).verdict.is_usable
    assert not _chosen(cells, limits=Limits(loo_mape=1.0)).verdict.is_usable


@pytest.mark.parametrize("kv_cache", [False, True, None])
@pytest.mark.parametrize(
    "truth", [TOKEN_PASS, {"(intercept)": 3.0}, {"tokens_out": 1.0}], ids=["token-pass", "constant", "steps"]
)
def test_exact_and_few_cells_are_fitted_without_a_warning(
    tmp_path: Path, kv_cache: bool | None, truth: dict[str, float]
) -> None:
    """No noise, one trial, hardly more cells than coefficients: no figure is NaN."""
    for trials in (1, 3):
        for grid in (None, [(8, 8), (8, 64), (64, 8)], [(8, 8), (8, 64), (64, 8), (64, 64)]):
            cells = drawn(truth, noise=0, kv_cache=kv_cache, trials=trials, grid=grid)
            fits, skipped = fit_all([cells])
            assert len(skipped) == (not fits)
            write_fits(tmp_path / "fits.json", fits, skipped=skipped)
            assert "NaN" not in (tmp_path / "fits.json").read_text()
            for fit in fits:
                assert not (len(cells.mean) <= len(fit.form.terms) + 1 and fit.verdict.is_usable)


def test_between_exact_fits_the_simplest_is_chosen() -> None:
    """A cost per step alone, without noise: two coefficients are enough."""
    assert _chosen(drawn({"tokens_out": 1.0}, noise=0)).form.label == "token-pass-linear"


def test_a_form_that_may_go_below_zero_is_never_chosen_beside_one_that_may_not() -> None:
    """The truth is the paper's form with a negative constant: it predicts best, and is shown, not chosen."""
    truth = {"(intercept)": -40.0, **PAPER}
    fits = compare(drawn(truth, seed=1, noise=0.001))
    best = min(fits, key=lambda fit: fit.loo_mape)
    (chosen,) = [fit for fit in fits if fit.chosen]
    assert not best.form.nonnegative
    assert chosen.form.nonnegative
