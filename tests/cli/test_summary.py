"""`llmenergy-report summary` and the front door itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from pytest_llmenergy.cli import group, main
from tests.doubles.documents import BY_HAND

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A document written by hand."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(BY_HAND))
    return path


def test_the_table_comes_out_of_the_json(results: Path) -> None:
    """The same table as at the end of the session."""
    output = CliRunner().invoke(group, ["summary", str(results)], catch_exceptions=False).output
    assert "m on s, batch 2, no KV cache" in output
    (row,) = [line.split() for line in output.splitlines() if line.split()[:2] == ["8", "10"]]
    assert row[2:] == ["2", "1.15", "s", "88.3", "W", "50.8", "J", "5.08", "J", "±6.3", "%", "measured"]
    assert max(map(len, output.splitlines())) <= 80


def test_several_documents_are_told_apart(results: Path) -> None:
    """Each under its name."""
    output = CliRunner().invoke(group, ["summary", str(results), str(results)]).output
    assert output.count(f"{results}:") == 2


def test_a_wrong_input_ends_with_status_2_and_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, without a traceback."""
    with pytest.raises(SystemExit) as ended:
        main(["summary", str(tmp_path / "none.json")])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1


def test_an_unknown_command_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """And is named."""
    with pytest.raises(SystemExit) as ended:
        main(["sumary"])
    assert ended.value.code == 2
    assert "sumary" in capsys.readouterr().err


def test_the_schema_command_prints_the_schema() -> None:
    """For validators elsewhere."""
    output = CliRunner().invoke(group, ["schema"]).output
    assert json.loads(output)["$id"] == "llmenergy.results/1"
