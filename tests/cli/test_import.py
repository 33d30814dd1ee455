"""`llmenergy-report import`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.campaign.results import read_results
from pytest_llmenergy.cli import main

if TYPE_CHECKING:
    from pathlib import Path

TABLE = """\
model,system,n_gpus,batch_size,input_tokens,output_tokens,trial,runtime_s,gpu_energy_j,cpu_energy_j
m,node,1,32,8,16,1,0.5,100.5,
m,node,1,32,8,16,2,0.6,101.5,
m,node,1,32,8,32,1,1.0,200,2
"""


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_a_table_becomes_a_document_that_summary_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Import says what it took in and what is unknown; the closing table then shows it."""
    table, results = tmp_path / "tidy.csv", tmp_path / "out" / "results.json"
    table.write_text(TABLE)
    assert _run("import", table, "-o", results) == 0
    said = capsys.readouterr().out
    assert "3 trials of 2 cells, 1 model, 1 system" in said
    assert "cpu_energy_j is unknown in 2 of 3 trials" in said
    assert "KV cache was in use is unknown" in said
    campaign = read_results(results)
    assert [len(cell.trials) for cell in campaign.cells] == [2, 1]
    assert campaign.settings["imported"][0]["file"] == "tidy.csv"
    assert _run("summary", results) == 0
    assert "100 J" not in capsys.readouterr().out.splitlines()[0]


def test_the_owner_says_the_mode_and_what_is_estimated(tmp_path: Path) -> None:
    """--no-kv-cache and --estimated stand in the document."""
    table, results = tmp_path / "tidy.csv", tmp_path / "results.json"
    table.write_text(TABLE)
    assert _run("import", table, "-o", results, "--no-kv-cache", "--estimated", "cpu") == 0
    cell = read_results(results).cells[1]
    assert cell.kv_cache is False
    assert [domain.provenance.value for domain in cell.trials[0].domains] == ["measured", "estimated"]


def test_a_bad_table_ends_with_status_2_and_no_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message on standard error; an older document stays as it was."""
    table, results = tmp_path / "tidy.csv", tmp_path / "results.json"
    table.write_text(TABLE + "m,node,1,32,8,16,3,0.5,-1,\n")
    results.write_text("older")
    assert _run("import", table, "-o", results) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Error: {table}: line 5: gpu_energy_j is -1.0")
    assert results.read_text() == "older"
