"""`llmenergy-report fit`."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.analysis.choose import AUTO
from pytest_llmenergy.analysis.energy_model import load_fits
from pytest_llmenergy.analysis.forms import FORM_NAMES
from pytest_llmenergy.cli import main
from pytest_llmenergy.cli.fit import command
from pytest_llmenergy.simulation import Coefficients
from tests.doubles.scripted import ENERGY, GRID, scripted

if TYPE_CHECKING:
    from pathlib import Path

# What a fit in fits.json always has.
PROMISED = {
    "model",
    "system",
    "metric",
    "form",
    "chosen",
    "intercept",
    "coefficients",
    "n",
    "r2",
    "r2_centred",
    "f",
    "p",
    "loo_mape",
    "loo_mdape",
    "negative_cells",
    "is_usable",
    "reasons",
}
BOTH = {"gpu:0": ENERGY, "cpu:attributed": Coefficients(step=0.2, token_pass=1e-4)}


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_every_form_is_compared_and_the_document_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of all forms, the chosen coefficients, the verdict; and fits.json gives the truth back."""
    path, out = scripted(tmp_path / "r.json", fingerprint="one"), tmp_path / "fits.json"
    assert _run("fit", path, "--metric", "gpu", "--json", out) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == "GPU energy of m on node, batch 1, no KV cache: 25 cells"
    for form in ("paper", "paper + constant", "paper-relative", "token-pass-linear", "token-pass"):
        assert any(line.strip().startswith(form) for line in lines)
    assert "chosen: token-pass" in text
    assert "usable: yes" in text
    assert max(map(len, lines)) <= 80
    document = json.loads(out.read_text())
    assert document["schema"] == "llmenergy.fits/1"
    assert all(set(fit) >= PROMISED for fit in document["fits"])
    assert sum(fit["chosen"] for fit in document["fits"]) == 1
    (model,) = load_fits(out)
    truth = ENERGY.evaluate(100, 100, 1, kv_cache=False)
    mean, low, high = model.predict(100, 100, interval=0.95)
    assert float(mean) == pytest.approx(truth, rel=0.01)
    assert low < truth < high
    assert (model.fingerprint, model.is_usable) == ("one", True)
    assert model.results_sha256 == (document["results"][0]["sha256"],)


def test_gpu_cpu_total_and_runtime_are_fitted_separately(tmp_path: Path) -> None:
    """And a total that holds an estimate says so, as its estimated part does, and its measured not."""
    path = scripted(tmp_path / "r.json", energy_j=BOTH, estimated=("cpu:attributed",))
    out = tmp_path / "fits.json"
    assert _run("fit", path, "--json", out) == 0
    chosen = {fit["metric"]: fit for fit in json.loads(out.read_text())["fits"] if fit["chosen"]}
    assert {metric: fit["provenance"] for metric, fit in chosen.items()} == {
        "gpu_energy_j": "measured",
        "cpu_energy_j": "estimated",
        "energy_j": "estimated",
        "runtime_s": "measured",
    }
    assert "the total holds an estimate, not measurements alone" in chosen["energy_j"]["cautions"]
    units = {name: one["unit"] for name, one in chosen["runtime_s"]["coefficients"].items()}
    assert units["steps"] == "s/step"


def test_one_form_with_a_constant_prints_the_regression_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--form paper --intercept: coefficients, errors, intervals, R2 and whether it is centred, F, p, n."""
    path = scripted(tmp_path / "r.json")
    assert _run("fit", path, "--form", "paper", "--intercept", "--metric", "gpu") == 0
    text = capsys.readouterr().out
    assert "form paper + constant, by statsmodels" in text
    for expected in ("(intercept)", "J/call", "tokens_in*tokens_out", "F(3, 21)", "n 25", "usable: NO"):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 80


def test_machines_are_kept_apart_in_the_table_and_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two machines of one name are two fits, each with its machine; pooled when asked."""
    paths = [scripted(tmp_path / f"{name}.json", fingerprint=name, seed=ord(name)) for name in "xy"]
    out = tmp_path / "fits.json"
    assert _run("fit", *paths, "--metric", "gpu", "--json", out) == 0
    assert "machine x: 25 cells" in capsys.readouterr().out
    assert [model.fingerprint for model in load_fits(out)] == ["x", "y"]
    assert _run("fit", *paths, "--metric", "gpu", "--pool", "--json", out) == 0
    assert [model.fingerprint for model in load_fits(out)] == [None]


def test_cells_of_several_documents_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of one cell on one machine are taken together, and fit and its document say so."""
    paths = [scripted(tmp_path / f"{seed}.json", seed=seed) for seed in (1, 2)]
    out = tmp_path / "fits.json"
    assert _run("fit", *paths, "--metric", "gpu", "--json", out) == 0
    note = "25 cells stand in several documents: their trials are taken together."
    assert capsys.readouterr().out.splitlines()[-1] == note
    assert json.loads(out.read_text())["notes"] == [note]


def test_a_fit_names_the_documents_it_came_from_and_its_worst_cell(tmp_path: Path) -> None:
    """The hash of each document that holds its cells, and of no other; the error in percent."""
    paths = [scripted(tmp_path / f"{name}.json", models=(name,)) for name in "ab"]
    out = tmp_path / "fits.json"
    assert _run("fit", *paths, "--metric", "gpu", "--json", out) == 0
    hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    for fit in json.loads(out.read_text())["fits"]:
        if not fit["chosen"]:
            continue
        assert fit["results_sha256"] == [hashes[fit["model"]]]
        cells = fit["cells"]
        errors = [
            100 * (left / seen - 1) for left, seen in zip(cells["left_out"], cells["observed"], strict=True)
        ]
        worst = max(range(len(errors)), key=lambda i: abs(errors[i]))
        assert fit["worst_cell"] == {
            "tokens_in": cells["tokens_in"][worst],
            "tokens_out": cells["tokens_out"][worst],
            "error_pct": pytest.approx(errors[worst]),
        }


def test_a_group_that_cannot_be_fitted_does_not_take_the_others_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with the reason, in the table and in the document."""
    whole = scripted(tmp_path / "whole.json", models=("a",))
    part = scripted(tmp_path / "part.json", models=("b",), grid=[(8, 32), (64, 32), (512, 32)])
    out = tmp_path / "fits.json"
    assert _run("fit", whole, part, "--metric", "runtime", "--json", out) == 0
    assert "Not fitted, runtime: b on node" in capsys.readouterr().out
    (skipped,) = json.loads(out.read_text())["skipped"]
    assert (skipped["model"], skipped["metric"]) == ("b", "runtime_s")
    assert "every cell has tokens_out 32" in skipped["reason"]


def test_the_command_offers_every_form() -> None:
    """Its list stands apart, so that --help needs no numpy."""
    (option,) = (one for one in command.params if one.name == "form")
    assert tuple(option.type.choices) == (AUTO, *FORM_NAMES)


def test_many_fits_are_shown_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, the worst first, and how many are usable."""
    names = tuple(f"m{i}" for i in range(15))
    path = scripted(tmp_path / "r.json", models=names, scales=range(1, 16), grid=GRID[::2], trials=2)
    assert _run("fit", path, "--metric", "gpu", "--form", "token-pass") == 0
    text = capsys.readouterr().out
    assert text.startswith("15 fits\n")
    assert "usable: 15 of 15" in text


def test_scaling_across_models_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--across takes sizes from the command line where documents and presets have none."""
    path = scripted(tmp_path / "r.json", models=("mistral-7b", "b"), scales=(1, 2))
    out = tmp_path / "fits.json"
    arguments = ["--across", "--active-parameters", "b=14483464192", "--json", out]
    assert _run("fit", path, "--metric", "gpu", *arguments) == 0
    assert "active parameters to the power 1.00" in capsys.readouterr().out
    (line,) = json.loads(out.read_text())["across"]
    assert line["exponent"] == pytest.approx(1.0, abs=0.03)
    assert _run("fit", path, "--across", "--active-parameters", "b=many") == 2
    assert "'b=many' is not MODEL=ACTIVE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "arguments", "message"),
    [
        (GRID[:5], [], "every cell has tokens_in 8, so what a token of it costs cannot be told"),
        (GRID, ["--intercept"], "--intercept goes with one form"),
        (GRID, ["--metric", "cpu"], "cpu is not known of these results; known are gpu_energy_j"),
        ([(8, 8), (64, 64), (8, 64)], ["--form", "paper"], "needs 4 cells or more; there are 3"),
    ],
)
def test_a_wrong_request_ends_with_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    grid: list[tuple[int, int]],
    arguments: list[str],
    message: str,
) -> None:
    """One message on standard error that names the remedy; no document."""
    path, out = scripted(tmp_path / "r.json", grid=grid), tmp_path / "fits.json"
    assert _run("fit", path, "--json", out, *arguments) == 2
    said = capsys.readouterr()
    assert (said.out, out.exists()) == ("", False)
    assert said.err.startswith("Error: ")
    assert message in said.err
