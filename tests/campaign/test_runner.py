"""What a campaign keeps when calls fail or people interrupt, and what its journal says on disk."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_llmenergy import student_t
from pytest_llmenergy.backends import Work, counting
from pytest_llmenergy.backends.replay import ReplayLoadedModel
from pytest_llmenergy.campaign.journal import JOURNAL_NAME, CellDone, TrialDone, read_journal
from pytest_llmenergy.campaign.results import RESULTS_NAME, read_results
from pytest_llmenergy.campaign.settings import Settings
from pytest_llmenergy.campaign.stopping import StopRule
from pytest_llmenergy.errors import DoesNotFitError, RequestError
from tests.doubles.engine import HERE, IDLE_W, Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_llmenergy.records import Environment, Trial


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "out")


def at(number: int, error: BaseException) -> Callable[[int], None]:
    """Raise in the call of that number."""

    def before_call(call: int) -> None:
        if call == number:
            raise error

    return before_call


def trials_of(machine: Machine, label: str) -> list[Trial]:
    """What the journal on disk has of a cell or callable."""
    events, _ = read_journal(machine.folder / JOURNAL_NAME)
    return [event.trial for event in events if isinstance(event, TrialDone) and event.cell == label]


# Cells


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_the_rules_confidence_is_that_of_every_interval(tmp_path: Path, confidence: float) -> None:
    """In a cell's stop and summary, and in a callable's."""
    machine = Machine(tmp_path / "out", noise=0.02)
    rule = StopRule(ci_abs_s=None, ci_rel=None, confidence=confidence, min_trials=4)
    runner = machine.runner(rule=rule, idle_s=0.0)
    cell = runner.cell("a", 8, 4)
    window = runner.windows.measure(
        lambda: machine.world.call("a", 8, 4, 1, kv_cache=False), label="w", tokens_generated=128
    )
    runner.finish(complete=True)
    for measured in (cell, window):
        energies_j = [t.domains[0].energy_j for t in measured.trials if t.counts]
        half_width_j = student_t.half_width(energies_j, confidence)
        assert half_width_j > 0
        assert measured.summary.energy_j_per_token_half_width == pytest.approx(half_width_j / 128)
        assert measured.stop.confidence == confidence
        mean_j = student_t.mean(energies_j)
        assert measured.stop.energy_half_width_rel == pytest.approx(half_width_j / mean_j)


@pytest.mark.parametrize("kv_cache", [False, True])
def test_a_cells_batch_and_cache_win_over_the_campaigns(machine: Machine, kv_cache: bool) -> None:
    """The engine is asked for them, the record names them, and they are cells of their own."""
    runner = machine.runner(idle_s=0.0, batch_size=4, kv_cache=kv_cache)
    asked = [{}, {"batch_size": 2}, {"kv_cache": not kv_cache}, {"batch_size": 1, "kv_cache": not kv_cache}]
    wanted = [(4, kv_cache), (2, kv_cache), (4, not kv_cache), (1, not kv_cache)]
    done = [runner.cell("a", 8, 4, **how) for how in asked]
    assert [(cell.batch_size, cell.kv_cache) for cell in done] == wanted
    works = [
        Work(tokens_in=8, tokens_out=4, batch_size=batch_size, kv_cache=cache, seed=0)
        for batch_size, cache in wanted
    ]
    assert list(dict.fromkeys(machine.engine.works)) == works
    calls = len(machine.engine.works)
    assert [runner.cell("a", 8, 4, **how) for how in asked] == done
    assert len(machine.engine.works) == calls
    assert len(runner.finish(complete=True).cells) == 4


@pytest.mark.parametrize("count", [8.5, "8", True, 0, -1])
@pytest.mark.parametrize("name", ["tokens_in", "tokens_out", "batch_size"])
def test_a_token_count_that_is_none_is_refused_with_one_message(
    machine: Machine, name: str, count: Any
) -> None:
    """Before a model is loaded."""
    runner = machine.runner()
    with pytest.raises(RequestError) as caught:
        runner.cell("a", **{"tokens_in": 8, "tokens_out": 4, name: count})
    assert str(caught.value) == f"{name} must be a whole number of at least 1, not {count!r}."
    assert machine.engine.works == []
    runner.finish(complete=False)


@pytest.mark.parametrize("count", [8.5, "8", True])
def test_a_callables_token_count_is_refused_likewise(machine: Machine, count: Any) -> None:
    runner = machine.runner()
    with pytest.raises(RequestError, match="must be a whole number of at least 1"):
        runner.windows.measure(lambda: None, label="w", tokens_generated=count)
    runner.finish(complete=False)


def test_an_interrupted_cell_keeps_its_trials(machine: Machine) -> None:
    """Two warm-ups and two trials were done when the fifth call was interrupted."""
    runner = machine.runner(idle_s=0.0)
    machine.engine.before_call = at(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runner.cell("a", 8, 4)
    runner.finish(complete=False)
    campaign = read_results(machine.folder)
    (cell,) = campaign.cells
    assert campaign.complete is False
    assert (cell.error, cell.stop.reason, cell.stop.trials) == ("interrupted", "interrupted", 2)
    assert [trial.warmup for trial in cell.trials] == [True, True, False, False]
    assert trials_of(machine, cell.label) == list(cell.trials)


@pytest.mark.parametrize("resume", [False, True])
def test_an_interrupted_cell_is_measured_whole_when_it_is_asked_for_again(
    machine: Machine, resume: bool
) -> None:
    """In the same session or a resumed one; it stands in the results once."""
    runner = machine.runner(idle_s=0.0)
    machine.engine.before_call = at(5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runner.cell("a", 8, 4)
    if resume:
        runner.finish(complete=False)
        runner = machine.runner(idle_s=0.0, resume=True)
        assert runner.resumed_cells == 0
    runner.cell("a", 8, 4)
    runner.finish(complete=True)
    (cell,) = read_results(machine.folder).cells
    assert (cell.error, cell.stop.trials) == (None, 5)


def test_a_broken_off_cells_interval_has_the_rules_confidence_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "out", noise=0.02)
    runner = machine.runner(idle_s=0.0, rule=StopRule(confidence=0.8))
    machine.engine.before_call = at(6, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        runner.cell("a", 8, 4)
    (cell,) = runner.finish(complete=False).cells
    energies_j = [trial.domains[0].energy_j for trial in cell.trials if trial.counts]
    assert len(energies_j) == 3
    wanted = student_t.half_width(energies_j, 0.8) / student_t.mean(energies_j)
    assert cell.stop.energy_half_width_rel == pytest.approx(wanted)
    assert cell.stop.confidence == 0.8


def test_a_cell_that_runs_out_of_memory_on_its_way_keeps_its_trials(machine: Machine) -> None:
    """With the sizes; the campaign goes on."""
    runner = machine.runner(idle_s=0.0)
    machine.engine.before_call = at(4, DoesNotFitError("no room", needed_b=9, available_b=8))
    cell = runner.cell("a", 8, 4)
    assert (cell.error, cell.stop.reason, cell.stop.trials) == ("no room", "does-not-fit", 1)
    assert len(cell.trials) == 3
    assert cell.details == {"needed_b": 9, "available_b": 8}
    assert runner.cell("a", 8, 2).error is None
    runner.finish(complete=True)


def test_a_trial_faster_than_its_device_can_be_fails_its_cell(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call takes 0.4 s: 100 FLOP are a quarter of what 1000 FLOP/s do, and too many for 200 FLOP/s."""
    needed = counting.Needed(flops=100.0, bytes=1.0)
    for peak, mfu in ((1000.0, 0.25), (200.0, None)):
        monkeypatch.setattr(
            ReplayLoadedModel, "account", lambda _, __, s, peak=peak: counting.account(needed, s, peak=peak)
        )
        runner = machine.runner(idle_s=0.0)
        cell = runner.cell("a", 8, 4)
        runner.finish(complete=True)
        if mfu is not None:
            assert cell.error is None
            assert (cell.details["flops"], cell.details["mfu"]) == (100.0, pytest.approx(mfu))
        else:
            assert "the device's peak is 200. It did not do the work" in cell.error
            assert (cell.stop.reason, cell.stop.trials) == ("failed", 0)


def test_a_model_that_a_failed_call_has_lost_is_loaded_anew_for_the_next_cell(machine: Machine) -> None:
    """And is not kept waiting for power at rest that it no longer draws; one that is not lost stays."""
    runner = machine.runner(idle_s=5.0)

    def lose(call: int) -> None:
        if call == 4:
            machine.engine.has_lost = True
            raise DoesNotFitError("no room")

    machine.engine.before_call = lose
    assert runner.cell("a", 8, 4).error == "no room"
    assert runner.cell("a", 8, 2).error is None
    assert runner.cell("a", 4, 2).error is None
    assert machine.engine.loads == ["a", "a"]
    (record,) = runner.finish(complete=True).models
    assert [idle["when"] for idle in record.idle] == ["before", "before", "after"]


def test_a_cell_that_failed_keeps_its_trials_and_is_measured_again_on_resume(machine: Machine) -> None:
    """A cell that did not fail is not."""
    runner = machine.runner(idle_s=0.0)
    good = runner.cell("a", 8, 2)
    machine.engine.before_call = at(len(machine.engine.works) + 4, RuntimeError("out of luck"))
    with pytest.raises(RuntimeError):
        runner.cell("a", 8, 4)
    runner.finish(complete=False)
    failed = read_results(machine.folder).cells[1]
    assert (failed.error, failed.stop.reason) == ("RuntimeError: out of luck", "failed")
    assert len(failed.trials) == 3

    again = machine.runner(idle_s=0.0, resume=True)
    assert again.resumed_cells == 1
    assert again.cell("a", 8, 2) == good
    assert machine.engine.works == []
    assert again.cell("a", 8, 4).error is None
    assert len(machine.engine.works) == 7
    again.finish(complete=True)
    assert [cell.error for cell in read_results(machine.folder).cells] == [None, None]


# Callables


def test_the_trials_of_a_measured_callable_are_in_the_journal_as_they_come(machine: Machine) -> None:
    """Under its label, the warm-up too, before the next call."""
    runner = machine.runner()
    seen: list[int] = []

    def call() -> None:
        seen.append(len(trials_of(machine, "mine")))
        machine.world.idle(1.0)

    record = runner.windows.measure(call, label="mine")
    assert seen == [0, 1, 2, 3, 4, 5]
    assert trials_of(machine, "mine") == list(record.trials)
    runner.finish(complete=True)


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted"),
        (RuntimeError("no more"), "failed", "RuntimeError: no more"),
    ],
)
def test_a_callable_that_breaks_off_in_its_fifth_call_keeps_what_was_measured(
    machine: Machine, error: BaseException, reason: str, said: str
) -> None:
    """One warm-up and three trials, with their mean, in the results; the error is the caller's."""
    runner = machine.runner()
    calls = iter(range(1, 10))

    def call() -> None:
        at(5, error)(next(calls))
        machine.world.idle(2.0)

    with pytest.raises(type(error)):
        runner.windows.measure(call, label="mine")
    runner.finish(complete=False)
    (window,) = read_results(machine.folder).windows
    assert (window.label, window.error, window.stop.reason, window.stop.trials) == ("mine", said, reason, 3)
    assert [trial.warmup for trial in window.trials] == [True, False, False, False]
    assert window.summary.energy_j == pytest.approx(2 * IDLE_W)
    assert trials_of(machine, "mine") == list(window.trials)


# The journal


def test_every_event_is_on_the_disk_before_the_campaign_goes_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are fsynced whole, one by one."""
    journal = machine.folder / JOURNAL_NAME
    synced: list[int] = []
    real = os.fsync

    def spy(handle: int) -> None:
        real(handle)
        if journal.exists() and os.fstat(handle).st_ino == journal.stat().st_ino:
            synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", spy)
    runner = machine.runner(idle_s=0.0)
    runner.cell("a", 8, 4)
    lines = journal.read_bytes().splitlines(keepends=True)
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    assert len(lines) == 10  # opened, model, 7 trials, cell
    assert synced == ends
    runner.finish(complete=True)


def resumable(machine: Machine) -> None:
    """Leave a campaign of one cell."""
    runner = machine.runner(idle_s=0.0)
    runner.cell("a", 8, 4)
    runner.finish(complete=True)


def changed(**fields: Any) -> Environment:
    """The machine with something else in it."""
    return msgspec.structs.replace(HERE, **fields)


def test_resume_on_another_machine_is_refused_with_its_name(machine: Machine) -> None:
    resumable(machine)
    with pytest.raises(RequestError, match="machine: node1 against node2") as caught:
        machine.runner(idle_s=0.0, resume=True, environment=changed(hostname="node2"))
    assert "leave --llm-energy-resume out" in str(caught.value)


def test_resume_on_another_gpu_is_refused_with_its_name(machine: Machine) -> None:
    """The same host with another board, too."""
    resumable(machine)
    other = msgspec.structs.replace(HERE.gpus[0], uuid="GPU-2")
    with pytest.raises(RequestError, match="GPU 0: NVIDIA A100 GPU-1 against NVIDIA A100 GPU-2"):
        machine.runner(idle_s=0.0, resume=True, environment=changed(gpus=(other,)))


@pytest.mark.parametrize(
    ("libraries", "said"),
    [
        ({"torch": "2.8.0", "numpy": "2.2.0"}, "torch: 2.7.0 then, 2.8.0 now"),
        ({"numpy": "2.2.0"}, "torch: 2.7.0 then, None now"),
        ({"torch": "2.7.0", "numpy": "2.2.0", "accelerate": "1.0"}, "accelerate: None then, 1.0 now"),
    ],
)
def test_resume_with_other_software_is_refused_with_its_name(
    machine: Machine, libraries: dict[str, str], said: str
) -> None:
    """Cells of one document must be of one software; a library that came or went counts."""
    resumable(machine)
    with pytest.raises(RequestError) as caught:
        machine.runner(idle_s=0.0, resume=True, environment=changed(libraries=libraries))
    assert said in str(caught.value)
    assert "numpy" not in str(caught.value)


def test_resume_with_other_settings_is_refused_with_their_name(machine: Machine) -> None:
    resumable(machine)
    with pytest.raises(RequestError, match="seed: 0 then, 1 now"):
        machine.runner(idle_s=0.0, resume=True, seed=1)


def test_a_refused_resume_lets_the_journal_go(machine: Machine) -> None:
    """With the right settings it goes on at once."""
    resumable(machine)
    with pytest.raises(RequestError):
        machine.runner(idle_s=0.0, resume=True, seed=1)
    runner = machine.runner(idle_s=0.0, resume=True)
    assert runner.resumed_cells == 1
    runner.finish(complete=True)


def test_resume_on_another_commit_says_so(machine: Machine) -> None:
    """A commit of the user's benchmarks changes no joule by itself: it is told, not refused."""
    resumable(machine)
    machine.runner(idle_s=0.0, resume=True, environment=changed(commit="beef")).finish(complete=True)
    assert machine.notices == ["the cells measured before ran on another commit: c0ffee"]
    machine.runner(idle_s=0.0, resume=True).finish(complete=True)
    assert machine.notices == []


def test_a_journal_without_its_model_lines_still_resumes(machine: Machine) -> None:
    """Someone took a damaged line out, as the message said: the baselines that hang on it are dropped."""
    runner = machine.runner()
    cell = runner.cell("a", 8, 4)
    runner.finish(complete=True)
    journal = machine.folder / JOURNAL_NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"event":"model"' not in line]
    assert len(kept) == len(lines) - 1
    assert sum(b'"event":"idle"' in line for line in kept) == 2
    journal.write_bytes(b"".join(kept))
    runner = machine.runner(resume=True)
    assert runner.cell("a", 8, 4).trials == cell.trials
    assert machine.engine.works == []
    campaign = runner.finish(complete=True)
    assert campaign.models == ()


@pytest.mark.parametrize(
    ("number", "remedy"), [(0, "Leave --llm-energy-resume out"), (2, "Delete that line to go on without it")]
)
def test_a_damaged_line_names_its_own_remedy(machine: Machine, number: int, remedy: str) -> None:
    """Without the first line nobody knows which campaign it was: that one cannot be deleted."""
    resumable(machine)
    journal = machine.folder / JOURNAL_NAME
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number][:20] + b"\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(RequestError) as caught:
        machine.runner(idle_s=0.0, resume=True)
    assert f"line {number + 1}" in str(caught.value)
    assert remedy in str(caught.value)
    assert ("Delete that line" in str(caught.value)) == (number > 0)


# Two runs, one folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_into_the_same_folder_is_refused_and_moves_nothing(
    machine: Machine, resume: bool
) -> None:
    """The first goes on as if nothing had been."""
    other = Machine(machine.folder)
    first = machine.runner(idle_s=0.0)
    first.cell("a", 8, 4)
    before = contents(machine.folder)
    with pytest.raises(RequestError, match=f"another run is measuring into {machine.folder}"):
        other.runner(idle_s=0.0, resume=resume)
    assert contents(machine.folder) == before
    assert [path.name for path in machine.folder.iterdir()] == [JOURNAL_NAME]
    first.cell("a", 8, 8)
    first.finish(complete=True)
    events, _ = read_journal(machine.folder / JOURNAL_NAME)
    assert sum(isinstance(event, CellDone) for event in events) == 2
    other.runner(idle_s=0.0, resume=True).finish(complete=True)


def test_a_line_that_another_run_is_writing_is_not_cut_off(machine: Machine) -> None:
    """It looks torn; but only the run that holds the journal may mend it."""
    first = machine.runner(idle_s=0.0)
    journal = machine.folder / JOURNAL_NAME
    with journal.open("ab") as file:
        file.write(b'{"event":"trial","cel')
    before = contents(machine.folder)
    with pytest.raises(RequestError, match="another run is measuring"):
        Machine(machine.folder).runner(idle_s=0.0, resume=True)
    assert contents(machine.folder) == before
    first.finish(complete=False)


def test_a_torn_last_line_is_cut_off_on_resume(machine: Machine) -> None:
    """A kill loses that line and no other."""
    resumable(machine)
    journal = machine.folder / JOURNAL_NAME
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"event":"trial","cel')
    runner = machine.runner(idle_s=0.0, resume=True)
    assert journal.read_bytes() == whole
    assert runner.resumed_cells == 1
    runner.cell("a", 8, 8)
    runner.finish(complete=True)
    assert journal.read_bytes().startswith(whole)
    runner = machine.runner(idle_s=0.0, resume=True)
    assert runner.resumed_cells == 2
    runner.finish(complete=True)


def test_a_folder_that_cannot_be_locked_is_measured_into_all_the_same(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre mounted without flock has no locks; a cluster's scratch is where campaigns are run."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    resumable(machine)
    resumable(machine)
    runner = machine.runner(idle_s=0.0, resume=True)
    assert runner.resumed_cells == 1
    runner.finish(complete=True)


def test_a_former_campaign_is_kept_with_all_its_files(machine: Machine) -> None:
    """Its verdict and its trace are of its joules, not of the new ones; other people's files stay."""
    resumable(machine)
    for name in ("gate.json", "trace.parquet", "notes.txt"):
        (machine.folder / name).write_text(f"former {name}")
    former = contents(machine.folder)
    del former["notes.txt"]
    runner = machine.runner(idle_s=0.0)
    assert runner.kept == machine.folder / "former-1"
    assert contents(machine.folder / "former-1") == former
    assert set(former) == {JOURNAL_NAME, RESULTS_NAME, "gate.json", "trace.parquet"}
    assert set(contents(machine.folder)) == {JOURNAL_NAME, "notes.txt"}
    runner.cell("a", 8, 4)
    runner.finish(complete=True)
    second = contents(machine.folder)
    runner = machine.runner(idle_s=0.0)
    assert runner.kept == machine.folder / "former-2"
    assert contents(machine.folder / "former-1") == former
    runner.finish(complete=False)  # nothing was measured: the second campaign gets its place back
    assert contents(machine.folder) == second
    assert not (machine.folder / "former-2").exists()


# The end


def test_the_results_are_written_before_the_power_at_rest_is_measured(machine: Machine) -> None:
    """It takes seconds in which people press Ctrl-C; what comes last is then written, too."""
    runner = machine.runner()
    runner.cell("a", 8, 4)
    results = machine.folder / RESULTS_NAME
    seen: list[int] = []
    machine.before_sleep = lambda: seen.append(len(read_results(results).cells))
    runner.finish(complete=True)
    assert seen
    assert set(seen) == {1}
    assert [idle["when"] for idle in read_results(results).models[0].idle] == ["before", "after"]


def test_an_interrupt_while_at_rest_loses_nothing(machine: Machine) -> None:
    """The results are whole, the model is freed, and the folder is free for the next run."""
    runner = machine.runner()
    cell = runner.cell("a", 8, 4)
    closed: list[bool] = []
    machine.engine.before_close = lambda: closed.append(True)

    def interrupt() -> None:
        raise KeyboardInterrupt

    machine.before_sleep = interrupt
    with pytest.raises(KeyboardInterrupt):
        runner.finish(complete=True)
    assert closed == [True]
    (written,) = read_results(machine.folder).cells
    assert written.trials == cell.trials
    machine.before_sleep = lambda: None
    machine.runner(resume=True).finish(complete=True)


def test_an_engine_that_cannot_be_closed_is_told_and_loses_nothing(machine: Machine) -> None:
    """What was measured at rest is written, and the folder is free for the next run."""
    runner = machine.runner()
    runner.cell("a", 8, 4)

    def fail() -> None:
        raise OSError("the server is gone")

    machine.engine.before_close = fail
    runner.finish(complete=True)
    assert machine.notices == ["while closing: OSError: the server is gone"]
    campaign = read_results(machine.folder)
    assert len(campaign.cells) == 1
    assert [idle["when"] for idle in campaign.models[0].idle] == ["before", "after"]
    machine.runner(resume=True).finish(complete=True)


def test_a_model_that_is_loaded_twice_keeps_its_baselines(machine: Machine) -> None:
    """A, B and A again: two before and two after of A, and net energy for all three cells."""
    runner = machine.runner()
    for model, tokens_out in (("a", 4), ("b", 4), ("a", 8)):
        runner.cell(model, 8, tokens_out)
    runner.finish(complete=True)
    campaign = read_results(machine.folder)
    idle = {model.model: [at_rest["when"] for at_rest in model.idle] for model in campaign.models}
    assert idle == {"a": ["before", "after", "before", "after"], "b": ["before", "after"]}
    for cell in campaign.cells:
        assert cell.summary.net_energy_j == pytest.approx(cell.tokens_out * (30 - IDLE_W * 0.1))


# Its name


@pytest.mark.parametrize("given", [".", "./", "../my-model", "../my-model/"])
def test_a_campaign_of_a_model_directory_has_the_directorys_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Also where the path ends in a dot or a slash."""
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    settings = Settings(models=(given,))
    assert settings.campaign == "my-model-quick"
    assert settings.folder.as_posix() == "reports/my-model-quick"
    assert replace(settings, models=("org/hub-model", given)).campaign == "hub-model+my-model-quick"
