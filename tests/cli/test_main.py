"""What `llmenergy-report` says of itself, and of what it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.cli import COMMANDS, main

if TYPE_CHECKING:
    from pathlib import Path

    Said = pytest.CaptureFixture[str]


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def test_help_has_every_command_with_its_whole_sentence(capsys: Said) -> None:
    """Nothing is cut at the end of a line, and no line is wider than 80 columns."""
    assert _run("--help") == 0
    text = capsys.readouterr().out
    lines = text.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines if line[2] != " "] == list(COMMANDS)
    assert not [line for line in lines if line.endswith("...")]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "No such command 'fitt'. Did you mean fit?"),
        (["plot"], "No such command 'plot'. There are summary, import,"),
        (["fit", "--metrc", "gpu"], "Did you mean"),
    ],
)
def test_a_mistyped_name_gets_those_near_to_it(arguments: list[str], message: str, capsys: Said) -> None:
    """Also before any command was loaded, which is all that click looks at."""
    assert _run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["fit"], "runs/mistral.csv"),
        (["anova"], "runs/mistral.json"),
        (["summary"], "runs/mistral.json"),
        (["import", "-o", "x.json"], "runs/mistral.csv"),
        (["gate"], "runs/mistral.json"),
        (["budget"], "runs/mistral.json"),
    ],
)
def test_a_missing_file_gets_the_names_near_to_it(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    """A folder that is not there is named as such."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / name.replace("mistral", "mistral-7b")).write_text("")
    twice = [name] * (1 + (command == ["gate"]))
    assert _run(*command, *twice) == 2
    near = name.replace("mistral", "mistral-7b")
    said = capsys.readouterr().err
    assert said == f"Error: {name}: cannot be read (No such file or directory). Did you mean {near}?\n"
    other = name.replace("runs", "run")
    assert _run(*command, *[other] * len(twice)) == 2
    assert capsys.readouterr().err.endswith("There is no folder run.\n")
