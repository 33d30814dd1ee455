"""`llmenergy-report gate` from documents to exit status."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner

from pytest_llmenergy.cli import group, main

AXIS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def document(seed, *, rise=None, noise=0.005, skip=(), provenance="measured", environment=None):
    """A results document by hand: 81 cells, five trials each, only the fields that must hold."""
    draw = random.Random(seed)
    shift = draw.gauss(1, 0.003)
    cells = []
    for i in AXIS:
        for o in AXIS:
            if (i, o) in skip:
                continue
            energy_j = 32 * o * (i + 10) * shift * (1.05 if (i, o) == rise else 1.0)
            trials = [
                {
                    "index": k,
                    "warmup": False,
                    "excluded": None,
                    "runtime_s": 1.0,
                    "repetitions": 1,
                    "tokens_generated": 32 * o,
                    "domains": [
                        {
                            "domain": "gpu:0",
                            "energy_j": energy_j * draw.gauss(1, noise),
                            "bound_j": None,
                            "provenance": provenance,
                            "reason": None,
                        }
                    ],
                }
                for k in range(5)
            ]
            cells.append(
                {
                    "model": "m-7b",
                    "system": "1x A100",
                    "n_gpus": 1,
                    "batch_size": 32,
                    "kv_cache": False,
                    "tokens_in": i,
                    "tokens_out": o,
                    "trials": trials,
                }
            )
    return {
        "schema": "llmenergy.results/1",
        "environment": environment or {},
        "settings": {},
        "cells": cells,
        "windows": [],
    }


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def gate(*arguments):
    return CliRunner().invoke(group, ["gate", *arguments])


def test_no_change_passes_with_its_rates(write, tmp_path):
    """Two hand-written sessions pass, and the report says what that is worth."""
    saved_at = tmp_path / "g.json"
    result = gate(write("a.json", document(1)), write("b.json", document(2)), "--json", str(saved_at))
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().splitlines()[-1] == "PASS: 81 pass"
    assert "at most 1.25 % of runs" in result.output
    assert "Smallest effect" in result.output
    saved = json.loads(saved_at.read_text())
    assert saved["schema"] == "llmenergy.gate/1"
    assert saved["verdict"] == "pass"
    assert len(saved["cells"]) == 81


def test_one_cell_of_81_is_found(write):
    """A true +5 % in one cell ends with status 1 and names the cell."""
    result = gate(write("a.json", document(1)), write("b.json", document(2, rise=(64, 256))))
    assert result.exit_code == 1
    line = next(line for line in result.output.splitlines() if line.endswith("fail"))
    assert line.split()[:2] == ["64", "256"]
    assert "FAIL: 1 fail, 80 pass" in result.output


def test_every_line_fits_80_columns(write):
    """Also with every cell, and with verdicts that are long words."""
    result = gate(write("a.json", document(1)), write("b.json", document(2, noise=0.05)), "--all")
    assert max(map(len, result.output.splitlines())) <= 80
    assert "inconclusive" in result.output
    assert len([line for line in result.output.splitlines() if line.split()[:1] == ["2048"]]) == 9


def test_a_session_is_not_compared_with_itself(write, capsys):
    """One document twice, under whatever name, would pass whatever it holds, or count for two."""
    one, copy, other = (write(f"{n}.json", document(seed)) for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    for arguments in ((one, one), (one, copy), (other, one, copy)):
        with pytest.raises(SystemExit) as ended:
            main(["gate", *arguments])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert f"{arguments[-1]} holds the same measurements as {arguments[-2]}" in said
    assert gate(one, other).exit_code == 0


def test_a_vanished_cell_fails(write):
    """A cell that the head lost is named."""
    base, head = write("a.json", document(1)), write("b.json", document(2, skip={(8, 8)}))
    result = gate(base, head)
    assert result.exit_code == 1
    assert "not-measured  m-7b in 8 out 8 batch 32 no-kv: gone from the head" in result.output
    assert (
        gate(write("a.json", document(1)), write("b.json", document(2, skip={(8, 8)})), "--subset").exit_code
        == 0
    )


def test_nothing_in_common_fails(write):
    """Documents without a cell in common compare nothing, which is status 1."""
    other = document(2)
    for cell in other["cells"]:
        cell["model"] = "other"
    result = gate(write("a.json", document(1)), write("b.json", other))
    assert result.exit_code == 1
    assert "NOTHING-COMPARED" in result.output
    assert "renamed" in result.output


def corrupted(**fields):
    broken = document(2)
    trial = broken["cells"][3]["trials"][1]
    for name, value in fields.items():
        (trial["domains"][0] if name == "energy_j" else trial)[name] = value
    return broken


def doubled():
    broken = document(2)
    broken["cells"].append(broken["cells"][0])
    return broken


def summarised():
    broken = document(2)
    broken["cells"][0]["summary"] = {
        "runtime_s": 1.0,
        "energy_j": 1.0,
        "gpu_energy_j": 1.0,
        "cpu_energy_j": None,
        "energy_j_per_token": 1.0,
        "provenance": "measured",
    }
    return broken


CORRUPT = {
    "torn": lambda: json.dumps(document(2))[:5000],
    "no object": lambda: "[]",
    "another schema": lambda: {**document(2), "schema": "llmenergy.fits/1"},
    "a negative energy": lambda: corrupted(energy_j=-5.0),
    "a zero energy": lambda: corrupted(energy_j=0.0),
    "a text for an energy": lambda: corrupted(energy_j="many"),
    "other work": lambda: corrupted(tokens_generated=7),
    "a cell twice": doubled,
    "a summary that lies": summarised,
}


@pytest.mark.parametrize("kind", CORRUPT)
@pytest.mark.parametrize("side", ["base", "head"])
def test_a_corrupted_document_is_refused(write, capsys, kind, side):
    """Status 2, one message that names the file, no traceback, no verdict."""
    good, bad = write("good.json", document(1)), write("bad.json", CORRUPT[kind]())
    with pytest.raises(SystemExit) as ended:
        main(["gate", *((bad, good) if side == "base" else (good, bad))])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("Error: ")
    assert "bad.json" in printed.err


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"environment": {"driver": "560.1"}}, "driver: 560.1 against unknown"),
        ({"provenance": "estimated"}, "energy: estimated against measured"),
    ],
)
def test_a_baseline_that_is_not_comparable_is_refused(write, capsys, base, words):
    """Status 2, and the difference is named."""
    with pytest.raises(SystemExit) as ended:
        main(["gate", write("a.json", document(1, **base)), write("b.json", document(2))])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_folder_of_ten_is_a_history(write, tmp_path):
    """Stored sessions show their spread; nine of them never fail and say so."""
    store = tmp_path / "store"
    store.mkdir()
    for k in range(1, 11):
        (store / f"{k:04d}_main.json").write_text(json.dumps(document(100 + k)))
    head = write("b.json", document(2, rise=(64, 256)))
    result = gate(str(store), head)
    assert result.exit_code == 1
    assert "against a history of 10 sessions" in result.output
    (store / "0010_main.json").unlink()
    result = gate(str(store), head)
    assert result.exit_code == 0
    assert "9 stored sessions: a history needs 10" in " ".join(result.output.split())


def test_the_options_reach_the_rules(write):
    """A wide tolerance for the cell that rose lets it pass; strict turns inconclusive into status 1."""
    base, head = write("a.json", document(1)), write("b.json", document(2, rise=(64, 256)))
    assert gate(base, head, "--tolerance", "* in 64 out 256 *=25%").exit_code == 0
    assert gate(base, head, "--fail-above", "20%").exit_code == 0
    assert gate(base, head, "--session-spread", "20%").exit_code == 1  # one cell beside the others
    everywhere = write("c.json", document(2))
    assert gate(base, everywhere, "--session-spread", "20%").exit_code == 0
    assert gate(base, everywhere, "--session-spread", "20%", "--strict").exit_code == 1
    assert gate(base, head, "--fail-above", "much").exit_code == 2


def test_ci_reads_it_where_it_looks(write, tmp_path, monkeypatch):
    """The Markdown is appended to the job's page, and annotations are printed on GitHub."""
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = gate(write("a.json", document(1)), write("b.json", document(2, rise=(64, 256))))
    text = page.read_text()
    assert text.startswith("before\n## ❌ Energy per token: FAIL")
    assert "| m-7b in 64 out 256 batch 32 no-kv |" in text
    annotation = next(line for line in result.output.splitlines() if line.startswith("::error"))
    assert annotation.startswith("::error title=Energy per token::m-7b in 64 out 256 batch 32 no-kv: +")
    assert "%25" in annotation


def test_a_missing_base_says_what_would_help(write, capsys):
    """A name that no store has is status 2 with the command that saves one."""
    with pytest.raises(SystemExit) as ended:
        main(["gate", "main", write("b.json", document(2)), "--store", "nowhere"])
    assert ended.value.code == 2
    assert "--llm-energy-save main" in capsys.readouterr().err


def test_warm_up_and_excluded_trials_do_not_count(write):
    """Ten times the energy in a trial that is marked changes no verdict; unmarked it does."""
    base = write("a.json", document(1))
    head = document(2)
    trials = head["cells"][5]["trials"]
    dear = json.loads(json.dumps(trials[0]))
    dear["domains"][0]["energy_j"] *= 10
    trials += [{**dear, "index": 5, "warmup": True}, {**dear, "index": 6, "excluded": "throttled"}]
    assert gate(base, write("b.json", head)).exit_code == 0
    trials.append({**dear, "index": 7})
    assert "inconclusive" in gate(base, write("c.json", head)).output


def test_a_head_that_was_stored_already_is_no_evidence_about_itself(write, tmp_path):
    """Its copy among the stored sessions is left out."""
    store = tmp_path / "store"
    store.mkdir()
    for k in range(1, 11):
        (store / f"{k:04d}_main.json").write_text(json.dumps(document(100 + k)))
    (store / "0011_main.json").write_text(json.dumps(document(2)))
    result = gate(str(store), write("b.json", document(2)))
    assert "against a history of 10 sessions" in result.output
