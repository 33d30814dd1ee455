"""The gate at the end of a measuring session: exit status, section, JUnit, budgets, saved baselines."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import msgspec
import pytest

import pytest_llmenergy.plugin.gate
import pytest_llmenergy.report.publish  # noqa: F401  (as in conftest.py)
from pytest_llmenergy.analysis.gate.request import GateRequest
from pytest_llmenergy.cli import main
from pytest_llmenergy.plugin.gate import SessionGate
from pytest_llmenergy.records import Campaign
from tests.doubles.documents import BY_HAND

MODELS = ("--models=m-one", "--llm-energy-grid=quick")
NOISE = "noise = { trial = 0.003, session = 0.002 }"
RISE = NOISE + '\n[[changes]]\nmodel = "m-one"\ntokens_in = 16\ntokens_out = 8\nenergy = 1.06\n'


@pytest.fixture
def measured(project, monkeypatch):
    """A project with a baseline in base/results.json, and a way to measure another session."""
    project.bench()
    count = 0

    def measure(*args, extra=NOISE, results="out"):
        nonlocal count
        count += 1
        monkeypatch.setenv("LLMENERGY_REPLAY_SESSION", str(count))
        project.replay(extra)
        return project.run("bench", *MODELS, f"--llm-energy-results={results}", *args)

    assert measure(results="base").ret == 0
    return measure


BASELINE = "--llm-energy-baseline=base/results.json"


def report(project, folder="out"):
    return json.loads((project.pytester.path / folder / "gate.json").read_text())


def test_no_change_passes(measured, project):
    """The verdict stands in its own section, and in gate.json beside the results."""
    result = measured(BASELINE, "--llm-energy-gate")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*energy gate*", "PASS: 6 pass"])
    assert report(project)["verdict"] == "pass"


def test_a_rise_fails_the_run(measured, project):
    """Every test passes, the gate does not: status 1, and the JUnit file has the verdict."""
    result = measured(BASELINE, "--llm-energy-gate", "--junitxml=junit.xml", extra=RISE)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*16 * 8 *fail", "FAIL: 1 fail*"])
    result.assert_outcomes(passed=11)
    properties = {
        p.get("name"): p.get("value")
        for p in ET.parse(project.pytester.path / "junit.xml").iterfind(".//testsuite/properties/property")
    }
    assert properties["llmenergy.gate.verdict"] == "fail"
    assert properties["llmenergy.gate.fail"] == "m-one in 16 out 8 batch 32 no-kv"


def test_without_the_switch_it_only_tells(measured):
    """A baseline alone is compared and shown; --llm-energy-fail-above makes it count."""
    result = measured(BASELINE, extra=RISE)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["FAIL: 1 fail*"])
    assert measured(BASELINE, "--llm-energy-fail-above=4%", extra=RISE).ret == 1
    assert measured(BASELINE, "--llm-energy-fail-above=25%", extra=RISE).ret == 0


def test_the_same_folder_can_be_its_own_baseline(measured, project):
    """The former results of a folder are read before the new campaign moves them aside."""
    assert measured(results="out").ret == 0
    result = measured("--llm-energy-baseline=out/results.json", "--llm-energy-gate", extra=RISE)
    assert result.ret == 1
    assert report(project)["base"] == "out/results.json"


def test_a_cell_that_was_not_measured_fails(measured, project):
    """A part of the grid against the whole is a failure, unless it is said to be a part."""
    part = ("--llm-energy-tokens-in=8,16",)
    result = measured(BASELINE, "--llm-energy-gate", *part)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["not-measured*m-one in 32 out 8*"])
    assert measured(BASELINE, "--llm-energy-gate", "--llm-energy-subset", *part).ret == 0


def test_a_session_that_measured_nothing_fails(measured, project):
    """Deselecting every measuring test does not pass the gate."""
    project.pytester.makepyfile(test_plain="def test_plain(): pass")
    result = project.run("test_plain.py", *MODELS, BASELINE, "--llm-energy-gate")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["NOTHING-COMPARED*"])


def test_a_marker_sets_its_cells_tolerance(measured, project):
    """A test that allows 20 % keeps its cells from failing, here and in a later report on the document."""
    bench = project.pytester.path / "bench" / "test_token_grid.py"
    bench.write_text(bench.read_text().replace('sweep="grid"', 'sweep="grid", tolerance="20%"'))
    for name in ("test_input_sweep.py", "test_output_sweep.py"):
        (bench.parent / name).unlink()
    result = measured(BASELINE, "--llm-energy-gate", extra=RISE)
    assert result.ret == 0, result.stdout.str()
    cell = next(c for c in report(project)["cells"] if (c["tokens_in"], c["tokens_out"]) == (16, 8))
    assert cell["fail_from"] == 0.2
    bench.write_text(bench.read_text().replace("20%", "lots"))
    assert measured(BASELINE).ret == 4


def test_pyproject_sets_tolerances(measured, project):
    """The ini value reaches the gate, and a pattern that matches nothing is refused, results kept."""
    project.pytester.makeini(
        "[pytest]\nllm_energy_tolerances = * in 16 out 8 *=20%\nllm_energy_gate = true\n"
    )
    assert measured(BASELINE, extra=RISE).ret == 0
    result = measured(BASELINE, "--llm-energy-tolerances=* in 17 *=20%", extra=RISE)
    assert result.ret == 4
    result.stdout.fnmatch_lines(["*matches no cell*"])
    assert len(project.results()["cells"]) == 6


def test_saved_baselines_become_a_history(measured, project):
    """Sessions saved under a name are found by it; ten of them are a history that may fail."""
    for _ in range(2):
        assert measured("--llm-energy-save=main").ret == 0
    files = sorted(p.name for p in (project.pytester.path / ".llmenergy").glob("*/*.json"))
    assert files == ["0001_main.json", "0002_main.json"]
    result = measured("--llm-energy-baseline=main", "--llm-energy-gate", extra=RISE)
    assert result.ret == 0
    assert report(project)["mode"] == "history"
    assert "2 stored sessions: a history needs 10" in report(project)["notes"][0]
    assert measured("--llm-energy-baseline=0002", "--llm-energy-gate", extra=RISE).ret == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--llm-energy-gate",), "nothing to hold the run against"),
        (("--llm-energy-baseline=absent.json",), "absent.json: cannot be read"),
        (("--llm-energy-baseline=main",), "no baseline 'main'"),
        (("--llm-energy-baseline=torn.json",), "is not a results document"),
        (("--llm-energy-fail-above=much", BASELINE), "--llm-energy-fail-above: 'much' is not a share"),
        (("--llm-energy-save=a/b",), "cannot name a baseline"),
        (("--llm-energy-budget=absent.toml",), "cannot be read"),
    ],
)
def test_a_bad_request_ends_before_anything_is_measured(measured, project, args, words):
    """Usage error, one message, and no results folder."""
    (project.pytester.path / "torn.json").write_text('{"schema": "llmenergy.results/1", "cells": [')
    result = measured(*args)
    assert result.ret == 4
    assert words in result.stderr.str() + result.stdout.str()
    assert not (project.pytester.path / "out" / "results.json").exists()


def test_another_machine_is_refused_before_anything_is_measured(measured, project):
    """The difference is named, and nothing is measured."""
    path = project.pytester.path / "base" / "results.json"
    document = json.loads(path.read_text())
    document["environment"]["driver"] = "999.1"
    path.write_text(json.dumps(document))
    result = measured(BASELINE, "--llm-energy-gate")
    assert result.ret == 4
    assert "driver: 999.1 against" in result.stderr.str() + result.stdout.str()
    assert not (project.pytester.path / "out" / "results.json").exists()


def report_command(*args):
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    return ended.value.code


def test_a_budget_is_made_kept_broken_and_moved(measured, project, capsys, monkeypatch):
    """The command writes it, shows the difference, and the session is held to it."""
    monkeypatch.chdir(project.pytester.path)
    assert report_command("budget", "base/results.json", "--update", "--headroom=2%") == 0
    assert '+model = "m-one"' in capsys.readouterr().out
    assert report_command("budget", "base/results.json") == 0
    assert measured("--llm-energy-budget=llmenergy-budget.toml", "--llm-energy-gate").ret == 0
    dear = NOISE + "\n[[changes]]\nenergy = 1.2\n"
    result = measured("--llm-energy-budget=llmenergy-budget.toml", "--llm-energy-gate", extra=dear)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*m-one*over*", "over budget: m-one in *"])
    assert report_command("budget", "out/results.json") == 1
    capsys.readouterr()
    assert report_command("budget", "out/results.json", "--update") == 0
    moved = capsys.readouterr().out.splitlines()
    assert any(line.startswith("-max_energy_j_per_token") for line in moved)
    assert any(line.startswith("+max_energy_j_per_token") for line in moved)
    assert report_command("budget", "out/results.json") == 0


def test_a_budget_of_a_model_that_was_not_measured_is_broken(measured, project):
    """A budget that nothing was held to is not kept."""
    (project.pytester.path / "b.toml").write_text(
        'schema = "llmenergy.budget/1"\n[[budget]]\nmodel = "other"\nmax_energy_j_per_token = 1.0\n'
    )
    result = measured("--llm-energy-budget=b.toml", "--llm-energy-gate")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*other*not measured*"])


def test_an_interrupted_session_is_neither_judged_nor_saved(tmp_path):
    """Half a grid is no baseline, and no evidence against one."""
    store = tmp_path / "store"
    gate = SessionGate(GateRequest(save="main", store=store, binding=True, budget=_budget(tmp_path)))
    document = BY_HAND | {"complete": False}
    campaign = msgspec.convert(document, Campaign)
    gate.judge(campaign, tmp_path / "results.json")
    assert gate.lines == ["not judged and not saved: the campaign was interrupted."]
    assert not store.exists()
    gate.judge(msgspec.structs.replace(campaign, complete=True), tmp_path / "results.json")
    assert len(list(store.glob("*/*_main.json"))) == 1


def _budget(folder):
    path = folder / "budget.toml"
    lines = ('schema = "llmenergy.budget/1"', "[[budget]]", 'model = "m"', "max_energy_j_per_token = 9e9")
    path.write_text("\n".join(lines) + "\n")
    return path
