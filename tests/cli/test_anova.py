"""`llmenergy-report anova`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.cli import main
from tests.doubles.published import MODELS, paper
from tests.doubles.scripted import ENERGY, scripted

if TYPE_CHECKING:
    from pathlib import Path

FEW = [(t, n) for t in (8, 32, 128) for n in (8, 64)]


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_the_paper_s_table_2_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the published files, by way of `import`, every printed digit."""
    results, out = tmp_path / "results.json", tmp_path / "anova.json"
    files = paper(*(f"published/{model}.csv" for model in MODELS))
    assert _run("import", *files, "-o", results) == 0
    capsys.readouterr()
    assert _run("anova", results, "--json", out) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for row in (
        "input tokens 5.17e+10 8 15.86 3.79e-17",
        "output tokens 4.13e+11 8 126.63 1.22e-65",
        "interaction 1.18e+11 64 4.53 4.67e-15",
        "input tokens 3.43e+05 8 12.97 2.34e-14",
        "output tokens 2.78e+06 8 104.98 4.56e-60",
        "interaction 8.21e+05 64 3.88 1.92e-12",
    ):
        assert any(line.startswith(row) for line in lines), row
    document = json.loads(out.read_text())
    assert document["schema"] == "llmenergy.anova/1"
    energy = document["metrics"]["gpu_energy_j"]
    assert (energy["n"], energy["models"]) == (243, ["Falcon (7B)", "Llama-2 (7B)", "Mistral (7B)"])
    assert [row["term"] for row in energy["rows"]] == ["tokens_in", "tokens_out", "interaction", "residual"]
    assert set(energy["rows"][0]) == {"term", "sum_sq", "df", "f", "p", "partial_omega_sq"}


def test_it_reads_at_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the block, the logarithm, and a model by name."""
    path = scripted(tmp_path / "r.json", models=("a", "b"), scales=(1, 2), grid=FEW)
    assert _run("anova", path, "--log", "--by-model", "--metric", "gpu", "--model", "a", "--model", "b") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "log GPU energy of 36 trials of 2 models, model as a factor"
    assert max(map(len, lines)) <= 80


def test_an_estimate_is_told_in_the_title_and_in_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An estimated part makes a total one; what was measured, and runtime, is none."""
    domains = {"gpu:0": ENERGY, "cpu:package-0": ENERGY}
    path = scripted(tmp_path / "r.json", grid=FEW, energy_j=domains, estimated=("cpu:package-0",))
    out = tmp_path / "anova.json"
    assert _run("anova", path, "--json", out) == 0
    titles = [line.partition(" of ")[0] for line in capsys.readouterr().out.splitlines() if " trials" in line]
    assert titles == ["GPU energy", "CPU energy (estimated)", "GPU and CPU energy (estimated)", "runtime"]
    metrics = json.loads(out.read_text())["metrics"]
    assert {name: metric["provenance"] for name, metric in metrics.items()} == {
        "gpu_energy_j": "measured",
        "cpu_energy_j": "estimated",
        "energy_j": "estimated",
        "runtime_s": "measured",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "cpu"], "cpu is not known of these results; known are gpu_energy_j, energy_j,"),
        (["--model", "c"], "no cell is of model 'c'; there is a"),
        (["--batch-size", "7"], "no cell is left"),
    ],
)
def test_a_wrong_request_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """One message on standard error, no table, no document."""
    path, out = scripted(tmp_path / "r.json", models=("a",), grid=FEW), tmp_path / "anova.json"
    assert _run("anova", path, "--json", out, *arguments) == 2
    said = capsys.readouterr()
    assert (said.out, out.exists()) == ("", False)
    assert message in said.err
