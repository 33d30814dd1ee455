"""Energy models that others load and ask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pytest_llmenergy.analysis.energy_model import EnergyModel, load_fits
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.simulation import Coefficients

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "workloads" / "llama-2-paper-coefficients.csv"


def _fit(**changes: object) -> dict[str, object]:
    return {
        "model": "tiny",
        "system": "node",
        "metric": "energy_j",
        "form": "paper",
        "chosen": True,
        "coefficients": {
            "tokens_in": {"value": 1.0},
            "tokens_out": {"value": 2.0},
            "tokens_in*tokens_out": {"value": 0.5},
        },
        **changes,
    }


def _write(path: Path, *fits: dict[str, object], schema: str = "llmenergy.fits/1") -> Path:
    path.write_text(json.dumps({"schema": schema, "fits": fits}))
    return path


def test_a_hand_written_document_predicts(tmp_path: Path) -> None:
    """A fits.json with nothing but the documented fields is a model."""
    (model,) = load_fits(_write(tmp_path / "fits.json", _fit()))
    assert model.predict([1, 2], [3, 4]).mean.tolist() == [8.5, 14.0]
    assert model.predict(1, 3, interval=0.95).low is None
    assert model.is_usable is None


def test_only_chosen_forms_are_loaded_unless_asked(tmp_path: Path) -> None:
    """The forms that lost are there for those who ask."""
    path = _write(tmp_path / "fits.json", _fit(), _fit(chosen=False, metric="runtime_s"))
    assert [model.metric for model in load_fits(path)] == ["energy_j"]
    assert len(load_fits(path, every_form=True)) == 2


@pytest.mark.parametrize("kv_cache", [False, True])
def test_the_terms_are_the_simulated_machines_sums(kv_cache: bool) -> None:
    """The columns are the exact sums over steps, here against the machine that counts them as integers."""
    truth = Coefficients(constant=3.0, step=5.0, token_pass=0.25, pair=0.125, context_read=0.5)
    t, n = np.meshgrid([1, 7, 2048], [1, 2, 333])
    expected = [
        truth.evaluate(int(a), int(b), 1, kv_cache=kv_cache) for a, b in zip(t.flat, n.flat, strict=True)
    ]
    names = (
        # With a cache the prefill's step and its first token pass stand in the constant.
        {"(intercept)": 8.0, "tokens_in": 0.25, "tokens_in^2": 0.125, "decode_steps": 5.25}
        | {"context_reads": 0.5}
        if kv_cache
        else {"(intercept)": 3.0, "steps": 5.0, "token_passes": 0.25, "attended_pairs": 0.125}
    )
    model = EnergyModel(model="m", system="s", metric="energy_j", form="f", coefficients=names)
    assert model.predict(t, n).mean.ravel() == pytest.approx(expected, rel=1e-13)


def test_intervals_follow_from_the_covariance() -> None:
    """One coefficient, known variances: the half width is t times the root of their sum."""
    model = EnergyModel(
        model="m",
        system="s",
        metric="runtime_s",
        form="f",
        coefficients={"steps": 2.0},
        covariance=((0.09,),),
        residual_scale=4.0,
        df_resid=10,
    )
    mean, low, high = model.predict(5, 10, interval=0.95)
    assert low is not None
    assert high is not None
    assert float(high - mean) == pytest.approx(2.2281388519649385 * 5.0)
    assert float(mean - low) == pytest.approx(float(high - mean))


def test_extrapolation_is_told_apart() -> None:
    """Token counts beyond the fitted cells are marked, on either axis and at either end."""
    model = EnergyModel(
        model="m",
        system="s",
        metric="energy_j",
        form="f",
        coefficients={"steps": 1.0},
        tokens_in_range=(8, 64),
        tokens_out_range=(8, 128),
    )
    t, n = [8, 64, 65, 8, 7, 8], [8, 128, 8, 129, 8, 7]
    assert model.extrapolates(t, n).tolist() == [False, False, True, True, True, True]


def test_published_coefficients_predict_as_published() -> None:
    """Eq. 6 with the paper's Llama-2 coefficients, at 9 tokens in and 128 out."""
    if not PUBLISHED.exists():
        pytest.skip(f"the published coefficients are not at {PUBLISHED}")
    models = {(model.model, model.metric): model for model in load_fits(PUBLISHED)}
    assert len(models) == 6
    energy_j = models["llama-2-7b", "gpu_energy_j"].predict(9, 128).mean
    assert float(energy_j) == pytest.approx(-3.894991 * 9 + 31.522735 * 128 + 0.042712 * 9 * 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,metric,form,value\n", "has no column 'coefficient'"),
        ("model,metric,form,coefficient,value\na,energy_j,paper,tokens_in,x\n", "line 2: the value 'x'"),
        ("model,metric,form,coefficient,value\na,energy,paper,tokens_in,1\n", "unknown metric 'energy'"),
        ("model,metric,form,coefficient,value\na,energy_j,paper,alpha,1\n", "unknown coefficient 'alpha'"),
        ("model,metric,form,coefficient,value\na,energy_j,paper,tokens_in,inf\n", "tokens_in is inf"),
        ("model,metric,form,coefficient,value\n" + 2 * "a,energy_j,paper,tokens_in,1\n", "line 3"),
        ("model,metric,form,coefficient,value\n", "has no fit"),
    ],
)
def test_a_bad_coefficient_file_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """One message, with the line."""
    path = tmp_path / "coefficients.csv"
    path.write_text(text)
    with pytest.raises(DocumentError, match=message) as error:
        load_fits(path)
    assert str(path) in str(error.value)


def test_a_bad_document_names_what_is_wrong(tmp_path: Path) -> None:
    """Another schema, no JSON, an unknown coefficient, a covariance of the wrong size, nothing there."""
    path = tmp_path / "fits.json"
    with pytest.raises(DocumentError, match="No such file"):
        load_fits(path)
    with pytest.raises(DocumentError, match=r"llmenergy\.fits/9"):
        load_fits(_write(path, _fit(), schema="llmenergy.fits/9"))
    with pytest.raises(DocumentError, match="covariance is not 3 x 3"):
        load_fits(_write(path, _fit(covariance=[[1.0]])))
    with pytest.raises(DocumentError, match="unknown coefficient 'gamma'"):
        load_fits(_write(path, _fit(coefficients={"gamma": {"value": 1}})))
    path.write_text("{")
    with pytest.raises(DocumentError, match="is not a fits document"):
        load_fits(path)
    with pytest.raises(RequestError, match="confidence of 95"):
        load_fits(_write(path, _fit()))[0].predict(1, 1, interval=95)


def test_a_model_loads_without_scientific_packages(tmp_path: Path) -> None:
    """Who only predicts needs numpy, and neither torch, scipy, pandas nor statsmodels."""
    path = _write(tmp_path / "fits.json", _fit())
    code = (
        "import sys, pathlib; from pytest_llmenergy.analysis.energy_model import load_fits;"
        f"load_fits(pathlib.Path({str(path)!r}))[0].predict([1], [1], interval=.9);"
        "print(sorted({'torch', 'scipy', 'pandas', 'statsmodels', 'polars'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
