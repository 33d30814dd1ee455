"""Bad input ends in one clear message that names the remedy, and nothing already measured is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--llm-energy-batch-size=0", "--llm-energy-batch-size: '0' is not a whole number of at least 1"),
        ("--llm-energy-batch-size=many", "--llm-energy-batch-size: 'many' is not a whole number"),
        ("--llm-energy-tokens-in=8,-1", "--llm-energy-tokens-in: '8,-1' is not a comma-separated list"),
        ("--llm-energy-tokens-out=", "--llm-energy-tokens-out: '' is not a comma-separated list"),
        ("--models=", "--llm-energy-models: '' is not a list of models"),
        ("--llm-energy-results=", "--llm-energy-results: '' is not a folder"),
        ("--llm-energy-ci-abs=50%", "--llm-energy-ci-abs: '50%' is not a number of seconds"),
        ("--llm-energy-grid=huge", "unknown grid 'huge'; choose quick, paper-input"),
        ("--llm-energy-ci-rel=-1%", "--llm-energy-ci-rel: '-1%' is not a share such as 1% or 0.01"),
        ("--llm-energy-ci-abs=inf", "--llm-energy-ci-abs: 'inf' is not a number of seconds"),
        ("--llm-energy-confidence=1", "--llm-energy-confidence: '1' is not a probability"),
        ("--llm-energy-min-trials=30", None),
        ("--llm-energy-seed=x", "--llm-energy-seed: 'x' is not a whole number"),
        ("--models=,", "--llm-energy-models: ',' is not a list of models"),
        ("--llm-energy-meters=replay:no.toml", "no.toml: cannot be read (No such file or directory)"),
        ("--llm-energy-meters=replay:replay.toml,nvml", "give replay:FILE alone"),
        ("-n2", "Leave out -n (pytest-xdist)"),
    ],
)
def test_a_wrong_option_is_one_message_and_nothing_is_measured(
    project: Any, option: str, message: str | None
) -> None:
    """A usage error, before a journal is begun."""
    result = project.run(project.bench(), "--models", "m-one", option)
    if message is None:
        assert result.ret == pytest.ExitCode.OK
        return
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.stderr.lines + result.stdout.lines if message in line]
    assert len(errors) == 1
    assert not (project.pytester.path / "out").exists()


def test_limits_that_contradict_each_other_are_refused(project: Any) -> None:
    """Both given, and the least above the most."""
    result = project.run(project.bench(), "--llm-energy-min-trials=9", "--llm-energy-max-trials=8")
    result.stderr.fnmatch_lines(["ERROR: --llm-energy-min-trials 9 is above --llm-energy-max-trials 8.*"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("schema = 'llmenergy.replay/2'\nmodels = []", "has schema 'llmenergy.replay/2'"),
        ("schema = 'llmenergy.replay/1'\nmodels = 3", "is not a replay file"),
        ("schema = ", "is not a replay file"),
    ],
)
def test_a_damaged_replay_file_is_refused(project: Any, content: str, message: str) -> None:
    """Another version, another shape, no TOML."""
    (project.pytester.path / "replay.toml").write_text(content)
    result = project.run(project.bench(), "--models", "m-one")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()


def test_a_results_folder_that_cannot_be_written_is_refused_before_anything_runs(project: Any) -> None:
    """A file stands where the folder should be."""
    (project.pytester.path / "file").write_text("")
    result = project.run(project.bench(), "--models", "m-one", "--llm-energy-results=file/out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: cannot write file/out/journal.jsonl*--llm-energy-results DIR.*"])


def interrupt_after(project: Any, cells: int) -> pytest.RunResult:
    """Run until so many cells are done, then as if the user pressed Ctrl-C."""
    project.pytester.makeconftest(
        f"""
        import pytest
        count = 0
        def pytest_runtest_logreport(report):
            global count
            count += report.when == "call" and "token_grid" in report.nodeid
            if count == {cells}:
                raise KeyboardInterrupt
        """
    )
    result = project.run(project.bench() + "/test_token_grid.py", "--models", "m-one")
    (project.pytester.path / "conftest.py").unlink()
    return result


def measured(project: Any) -> list[tuple[int, int]]:
    """Cells in the order they were measured, from the journal."""
    events = [json.loads(line) for line in project.journal().read_text().splitlines()]
    return [(e["record"]["tokens_in"], e["record"]["tokens_out"]) for e in events if e["event"] == "cell"]


def test_an_interrupted_campaign_keeps_what_it_has_and_resumes_in_the_same_order(project: Any) -> None:
    """Incomplete results first; then only the missing cells, in the order they would have had."""
    bench = project.bench() + "/test_token_grid.py"
    project.run(bench, "--models", "m-one")
    whole = measured(project)
    interrupted = interrupt_after(project, 2)
    assert interrupted.ret == pytest.ExitCode.INTERRUPTED
    document = project.results()
    assert (document["complete"], len(document["cells"])) == (False, 2)
    interrupted.stdout.fnmatch_lines(["results: * (incomplete: go on with --llm-energy-resume)"])
    resumed = project.run(bench, "--models", "m-one", "--llm-energy-resume")
    resumed.assert_outcomes(passed=6)
    resumed.stdout.fnmatch_lines(["resuming: 2 cells were measured before", "[[]1/4] m-one*"])
    assert measured(project) == whole
    assert project.results()["complete"] is True
    assert len(project.results()["cells"]) == 6


def test_a_torn_last_line_is_cut_and_its_cell_measured_again(project: Any) -> None:
    """What a SIGKILL in the middle of a write leaves."""
    interrupt_after(project, 2)
    content = project.journal().read_bytes()
    project.journal().write_bytes(content[:-40])
    result = project.run(project.bench() + "/test_token_grid.py", "--models", "m-one", "--llm-energy-resume")
    result.stdout.fnmatch_lines(["resuming: 1 cell was measured before"])
    assert len(project.results()["cells"]) == 6
    for line in project.journal().read_text().splitlines():
        json.loads(line)


def test_a_damaged_line_is_named_with_the_remedy_and_nothing_is_touched(project: Any) -> None:
    """Bit rot in the middle: the journal stays as it was."""
    interrupt_after(project, 2)
    lines = project.journal().read_bytes().splitlines(keepends=True)
    lines[3] = b"{" + lines[3][5:]
    project.journal().write_bytes(b"".join(lines))
    result = project.run(project.bench(), "--models", "m-one", "--llm-energy-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: out/journal.jsonl: line 4 is damaged*Delete that line to go on*"])
    assert project.journal().read_bytes() == b"".join(lines)


def test_a_journal_of_another_campaign_is_not_resumed(project: Any) -> None:
    """Other settings: the message names them."""
    interrupt_after(project, 2)
    result = project.run(
        project.bench(), "--models", "m-one", "--llm-energy-resume", "--llm-energy-batch-size=16"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is of another campaign (batch_size: 32 then, 16 now)*"])


def test_resuming_nothing_begins_and_says_so(project: Any) -> None:
    """A job script can always pass --llm-energy-resume."""
    result = project.run(project.bench(), "--models", "m-one", "--llm-energy-resume")
    result.stdout.fnmatch_lines(["nothing to resume in out: the campaign begins"])
    assert result.ret == 0


def test_a_failing_test_stops_at_x_and_the_document_says_incomplete(project: Any) -> None:
    """-x leaves cells unmeasured: what was measured is kept, and known not to be all."""
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("tokens_in", [8, 16, 32])
        @pytest.mark.parametrize("model", ["m-one"])
        @pytest.mark.parametrize("tokens_out", [8])
        def test_cells(energy, model, tokens_in, tokens_out):
            energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out)
            assert False
        """
    )
    project.run("--models", "m-one", "-x").assert_outcomes(failed=1)
    document = project.results()
    assert (document["complete"], len(document["cells"])) == (False, 1)
