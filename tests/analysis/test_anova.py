"""The analysis of variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from pytest_llmenergy.analysis import observations
from pytest_llmenergy.analysis.anova import anova
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.simulation import Coefficients
from tests.doubles.scripted import GRID, scripted

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.analysis.observations import Observations

FEW = [(t, n) for t in (8, 32, 128) for n in (8, 64)]


def _read(tmp_path: Path, **options: object) -> Observations:
    options = {"models": ("a", "b"), "scales": (1, 3), "grid": FEW, "noise": 0.2, **options}
    return observations.read([scripted(tmp_path / "results.json", **options)])


def _trials(read: Observations):
    cells = read.cells.with_row_index("cell").cast({"cell": int})
    return read.trials.join(cells, on="cell").to_pandas(use_pyarrow_extension_array=False)


@pytest.mark.parametrize("block", ["", " + C(model)"])
@pytest.mark.parametrize("log", [False, True])
def test_it_is_statsmodels_type_2_of_the_single_trials(tmp_path: Path, block: str, log: bool) -> None:
    """Also with the model as a factor and of the logarithm; trials beyond one a cell count as trials."""
    read = _read(tmp_path)
    response = "np.log(gpu_energy_j)" if log else "gpu_energy_j"
    formula = f"{response} ~ C(tokens_in) * C(tokens_out){block}"
    theirs = anova_lm(smf.ols(formula, _trials(read)).fit(), typ=2)
    ours = anova(read, "gpu_energy_j", log=log, by_model=bool(block))
    names = ["C(tokens_in)", "C(tokens_out)", "C(tokens_in):C(tokens_out)", "Residual"]
    for row, name in zip(ours.rows, names, strict=True):
        assert row.df == theirs.loc[name, "df"]
        assert row.sum_sq == pytest.approx(theirs.loc[name, "sum_sq"], rel=1e-8)
        if row.term != "residual":
            assert row.f == pytest.approx(theirs.loc[name, "F"], rel=1e-8)
            assert row.p == pytest.approx(theirs.loc[name, "PR(>F)"], rel=1e-6)
    assert ours.n == 36


def test_effect_sizes_are_partial_omega_squared(tmp_path: Path) -> None:
    """(SS - df MS_e) / (SS + (N - df) MS_e), and 0 for an effect below its noise."""
    ours = anova(_read(tmp_path), "gpu_energy_j")
    residual = ours.rows[-1]
    mean_sq = residual.sum_sq / residual.df
    for row in ours.rows[:-1]:
        size = (row.sum_sq - row.df * mean_sq) / (row.sum_sq + (ours.n - row.df) * mean_sq)
        assert row.partial_omega_sq == pytest.approx(max(0.0, size))


def test_what_has_no_effect_shows_none(tmp_path: Path) -> None:
    """Costs by tokens_out alone: the p of tokens_in is anything, that of tokens_out nothing."""
    p_values = []
    for seed in range(40):
        read = _read(
            tmp_path,
            energy_j={"gpu:0": Coefficients(constant=100, step=20)},
            seed=seed,
            models=("a",),
            scales=(1,),
        )
        rows = {row.term: row for row in anova(read, "gpu_energy_j", log=True).rows}
        p_values.append(rows["tokens_in"].p)
        assert rows["tokens_out"].p < 0.01
    assert 0.3 < np.mean(p_values) < 0.7


def test_a_grid_with_holes_has_its_tests(tmp_path: Path) -> None:
    """The interaction loses the combinations that were not measured, and the table says how many."""
    read = _read(tmp_path, grid=[cell for cell in FEW if cell != (128, 64)])
    ours = anova(read, "gpu_energy_j")
    assert ours.empty_cells == 1
    assert [row.df for row in ours.rows] == [2, 1, 1, 30 - 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("a",), "scales": (1,), "trials": 1}, "nothing is left to tell an effect from noise"),
        ({"grid": [(8, 8), (8, 64)]}, "every cell has tokens_in 8"),
    ],
)
def test_results_that_cannot_be_analysed_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    """With what to measure instead."""
    with pytest.raises(RequestError, match=message):
        anova(_read(tmp_path, **options), "gpu_energy_j")


def test_a_mixture_is_refused_and_a_part_of_it_is_not(tmp_path: Path) -> None:
    """Machines, batch sizes and generation modes are never of one table unasked."""
    paths = [
        scripted(
            tmp_path / f"{name}{kv}{batch_size}.json",
            fingerprint=name,
            kv_cache=kv,
            batch_size=batch_size,
            grid=FEW,
        )
        for name, kv, batch_size in (("x", False, 1), ("y", False, 1), ("x", True, 1), ("x", False, 8))
    ]
    for chosen, message in (
        (paths[:2], r"2 kinds of machine.*--system"),
        (paths[::2], r"2 kinds of kv_cache.*--kv-cache"),
        (paths[::3], r"2 kinds of batch_size.*--batch-size"),
    ):
        with pytest.raises(RequestError, match=message):
            anova(observations.read(chosen), "runtime_s")
    assert anova(observations.read(paths[:2], pool=True), "runtime_s").n == 36
    assert anova(observations.read(paths[::3]).select(batch_size=8), "runtime_s").n == 18


def test_many_trials_are_as_quick_as_their_cells(tmp_path: Path) -> None:
    """Trials of a cell are summed first, so the design has one row a cell and model."""
    read = _read(tmp_path, grid=GRID, trials=40)
    assert anova(read, "gpu_energy_j").rows[-1].df == 2 * 25 * 40 - 25
