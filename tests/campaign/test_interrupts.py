"""An interrupt ends the work at once, and lets the bookkeeping around it be finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.campaign.interrupts import Interrupts
from pytest_llmenergy.campaign.results import read_results
from tests.doubles.engine import Machine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "out")


def test_work_is_ended_where_it_is() -> None:
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts.allowed():
        interrupts.ask()
    interrupts.hear()
    interrupts.ask()  # outside again: nothing is raised


def test_bookkeeping_is_finished_and_its_caller_is_interrupted() -> None:
    """Of a caller who may not be interrupted either, nothing is raised."""
    interrupts = Interrupts()
    done: list[int] = []

    def keep_books() -> None:
        with interrupts.held():
            interrupts.ask()
            done.append(len(done))
        done.append(-1)

    with interrupts.held():
        keep_books()
    interrupts.hear()
    with pytest.raises(KeyboardInterrupt), interrupts.allowed():
        keep_books()
    assert done == [0, -1, 2]


def test_what_bookkeeping_raises_is_not_replaced() -> None:
    interrupts = Interrupts()

    def keep_books() -> None:
        with interrupts.held():
            interrupts.ask()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), interrupts.allowed():
        keep_books()


def test_work_is_not_taken_up_again() -> None:
    interrupts = Interrupts()
    interrupts.ask()
    with pytest.raises(KeyboardInterrupt), interrupts.allowed():
        raise AssertionError("not reached")


def test_whoever_asks_twice_is_not_kept_waiting() -> None:
    interrupts = Interrupts()
    with interrupts.held():
        interrupts.ask()
        with pytest.raises(KeyboardInterrupt):
            interrupts.ask()


def test_an_interrupt_between_two_trials_loses_neither(machine: Machine) -> None:
    """It comes while the fourth is noted; the fifth call is never made."""
    runner = machine.runner(idle_s=0.0)
    append, noted = runner._journal.append, []

    def note(event: object) -> None:
        if type(event).__name__ == "TrialDone":
            noted.append(event)
            if len(noted) == 4:
                machine.interrupts.ask()
        append(event)

    runner._journal.append = note
    with pytest.raises(KeyboardInterrupt):
        runner.cell("a", 8, 4)
    runner.finish(complete=False)
    (cell,) = read_results(machine.folder).cells
    assert (len(cell.trials), cell.stop.reason, len(machine.engine.works)) == (4, "interrupted", 4)


def test_an_interrupt_while_a_model_is_loaded_ends_it_there(machine: Machine) -> None:
    runner = machine.runner()
    runner.cell("a", 8, 4)
    machine.interrupts.ask()
    with pytest.raises(KeyboardInterrupt):
        runner.cell("b", 8, 4)
    assert [cell.model for cell in runner.finish(complete=False).cells] == ["a"]


def test_an_interrupt_in_a_call_ends_the_call(machine: Machine) -> None:
    """A callable of the user's may take minutes."""
    runner = machine.runner(idle_s=0.0)

    def call() -> None:
        machine.interrupts.ask()
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        runner.windows.measure(call, label="mine")
    (window,) = runner.finish(complete=False).windows
    assert window.error == "interrupted"
