"""Scaling across models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_llmenergy.analysis import observations
from pytest_llmenergy.analysis.across import Size, across, sizes
from pytest_llmenergy.analysis.cell_means import cell_means
from pytest_llmenergy.analysis.choose import fit_all
from pytest_llmenergy.errors import RequestError
from tests.doubles.scripted import ENERGY, scripted

if TYPE_CHECKING:
    from pathlib import Path

ACTIVE = {"small": 1e9, "middle": 4e9, "large": 16e9, "mixture": 4e9}


def _fits(tmp_path: Path, **options: object):
    options = {
        "models": tuple(ACTIVE),
        # Dense models cost as their parameters to the power 0.8; the mixture a quarter more than that.
        "scales": tuple((x / 1e9) ** 0.8 * (1.25 if name == "mixture" else 1) for name, x in ACTIVE.items()),
        **options,
    }
    return observations.read([scripted(tmp_path / "results.json", **options)])


def test_the_exponent_is_that_of_the_dense_models_and_mixtures_are_held_against_it(tmp_path: Path) -> None:
    """Scripted: power 0.8, and a mixture a quarter above its active parameters, far below all of them."""
    read = _fits(tmp_path)
    known = sizes(
        read, {name: Size(active=x, total=32e9 if name == "mixture" else x) for name, x in ACTIVE.items()}
    )
    lines = across(fit_all(cell_means(read))[0], known)
    assert [line.metric for line in lines] == ["gpu_energy_j", "energy_j", "runtime_s"]
    line = lines[0]
    assert line.exponent == pytest.approx(0.8, abs=0.01)
    assert line.interval is not None
    assert line.interval[0] <= 0.8 <= line.interval[1]
    mixture = next(point for point in line.points if point.model == "mixture")
    assert mixture.off_active == pytest.approx(0.25, abs=0.02)
    assert mixture.off_total == pytest.approx(1.25 * (4 / 32) ** 0.8 - 1, abs=0.02)


def test_two_models_make_a_line_without_an_interval(tmp_path: Path) -> None:
    """It goes through both: nothing is left to judge it by."""
    read = _fits(tmp_path, models=("small", "large"), scales=(1, 16**0.8))
    known = sizes(read, {name: Size(active=x, total=x) for name, x in ACTIVE.items()})
    line = across(fit_all(cell_means(read))[0], known)[0]
    assert line.interval is None
    assert line.exponent == pytest.approx(0.8, abs=0.02)


def test_sizes_come_from_results_and_presets(tmp_path: Path) -> None:
    """A document's own word, else the preset of that name, else a clear error."""
    read = _fits(tmp_path, models=("small", "mixtral-8x7b"), scales=(1, 2), active_parameters=(7,))
    known = sizes(read, {})
    assert known["small"] == Size(active=7, total=7)
    assert known["mixtral-8x7b"].active == pytest.approx(12.9e9, rel=0.01)
    assert not known["mixtral-8x7b"].is_dense
    with pytest.raises(RequestError, match=r"parameters of 'unheard' are not known.*--active-parameters"):
        sizes(_fits(tmp_path, models=("unheard",), scales=(1,)), {})


def test_one_dense_model_is_no_line(tmp_path: Path) -> None:
    """Neither are two of one size."""
    read = _fits(tmp_path, models=("small", "mixture"), scales=(1, 2))
    fits = fit_all(cell_means(read))[0]
    for mixture in (Size(active=4e9, total=32e9), Size(active=1e9, total=1e9)):
        with pytest.raises(RequestError, match="two dense models"):
            across(fits, {"small": Size(active=1e9, total=1e9), "mixture": mixture})


def test_a_size_is_known_by_the_papers_spelling_too(tmp_path: Path) -> None:
    """As `route` knows the accuracy: `Mistral (7B)` is the preset mistral-7b."""
    read = observations.read([scripted(tmp_path / "r.json", models=("Mistral (7B)",), scales=(1,))])
    assert sizes(read, {})["Mistral (7B)"].total == 7_241_732_096


def test_a_token_is_one_sequence_s(tmp_path: Path) -> None:
    """A call moves the whole batch: its cost is divided by all the tokens that it generates."""
    models = {"models": ("a", "b"), "scales": (1, 2), "active_parameters": (10**9, 2 * 10**9)}
    per_token = []
    for batch_size in (1, 8):
        read = observations.read([scripted(tmp_path / f"{batch_size}.json", batch_size=batch_size, **models)])
        fits, _ = fit_all(cells for cells in cell_means(read) if cells.metric == "gpu_energy_j")
        (line,) = across(fits, sizes(read, {}))
        tokens = np.meshgrid(line.tokens_in, line.tokens_out)
        costs = [
            ENERGY.evaluate(int(t), int(n), batch_size, kv_cache=False) / (batch_size * n)
            for t, n in zip(*(axis.ravel() for axis in tokens), strict=True)
        ]
        assert line.points[0].per_token == pytest.approx(np.exp(np.log(costs).mean()), rel=0.02)
        per_token.append(line.points[0].per_token)
    assert per_token[1] < per_token[0]  # the step is shared by the batch
