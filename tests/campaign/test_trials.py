"""One cell's trials: when they are given up, which of them count, and what of a window is one call's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmenergy.campaign.stopping import StopRule
from pytest_llmenergy.campaign.trials import SPOILED_IN_A_ROW, Trials, Warmup, run_trials
from pytest_llmenergy.errors import WrongWorkError
from tests.doubles.windows import LOST, ScriptedWindows, gpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.records import DomainEnergy

RUNTIME_S = 0.05


def measure(windows: ScriptedWindows, **options: Any) -> Trials:
    """Trials of a call of 50 ms, without a warm-up where none is asked for."""
    return run_trials(
        options.pop("call", lambda: windows.work(RUNTIME_S)),
        meters=windows.meters,
        rule=options.pop("rule", StopRule()),
        verify=options.pop("verify", lambda _: 1),
        on_trial=lambda *_: None,
        **options,
    )


def wild(number: int, runtime_s: float) -> DomainEnergy:
    """Energies whose interval is never narrow."""
    return gpu(runtime_s * (100 if number % 2 else 300))


def test_five_trials_without_a_reading_in_a_row_end_the_cell_and_say_why() -> None:
    """The sixth would have none either; hours would pass before twice the cap."""
    cell = measure(ScriptedWindows(reads=lambda *_: LOST), warmups=[Warmup()])
    assert len(cell.attempts) == SPOILED_IN_A_ROW == 5
    assert cell.stop is not None
    assert (cell.stop.reason, cell.stop.trials) == ("no-reading", 0)
    assert cell.error == "0 usable trials of 5; the last: gpu:0: GPU is lost"


def test_readings_lost_now_and_then_are_repeated() -> None:
    """Four of five are lost, never five in a row."""
    cell = measure(
        ScriptedWindows(reads=lambda number, runtime_s: gpu(300 * runtime_s) if number % 5 == 4 else LOST)
    )
    assert (len(cell.attempts), len(cell.counted), cell.error) == (25, 5, None)
    assert {trial.excluded for trial in cell.attempts} == {None, "gpu:0: GPU is lost"}


def test_a_cell_that_loses_its_reading_after_enough_trials_keeps_its_result() -> None:
    """Six trials are a result, though no narrow one."""
    cell = measure(ScriptedWindows(reads=lambda n, runtime_s: wild(n, runtime_s) if n < 6 else LOST))
    assert cell.stop is not None
    assert (cell.stop.reason, cell.stop.trials, cell.error) == ("no-reading", 6, None)


def test_too_few_usable_trials_of_twice_the_cap_are_an_error() -> None:
    """Every fifth is read, and seven are asked for."""
    cell = measure(
        ScriptedWindows(reads=lambda n, runtime_s: gpu(300 * runtime_s) if n % 5 == 0 else LOST),
        rule=StopRule(min_trials=7, max_trials=10),
    )
    assert (len(cell.attempts), len(cell.counted)) == (20, 4)
    assert cell.error == "4 usable trials of 20; the last: gpu:0: GPU is lost"


def cap(numbers: Callable[[int], bool]) -> Callable[[int], tuple[str, ...]]:
    return lambda number: ("gpu:0: power cap",) if numbers(number) else ()


def test_a_disturbance_that_comes_and_goes_is_the_condition_once_it_spoils_most_of_a_cap() -> None:
    """Four of five are disturbed, never five in a row; after a cap of trials they count, with their flags."""
    cell = measure(
        ScriptedWindows(flags=cap(lambda number: number % 5 != 0)), rule=StopRule(min_trials=8, max_trials=10)
    )
    assert (len(cell.attempts), len(cell.counted), cell.error) == (10, 10, None)
    assert sum(bool(trial.flags) for trial in cell.counted) == 8


@pytest.mark.parametrize("disturbed", [1, 7, 24])
def test_one_disturbed_trial_of_a_whole_cap_stays_excluded_and_is_repeated(disturbed: int) -> None:
    """24 clean ones and it: the 26th takes its place."""
    cell = measure(ScriptedWindows(reads=wild, flags=cap(lambda number: number == disturbed)))
    assert (len(cell.attempts), len(cell.counted)) == (26, 25)
    (left_out,) = (trial for trial in cell.attempts if not trial.counts)
    assert (left_out.index, left_out.excluded) == (disturbed, "disturbed: gpu:0: power cap")
    assert not any(trial.flags for trial in cell.counted)


def test_half_of_the_trials_is_not_most_of_them() -> None:
    """Every second one is disturbed: the clean ones are waited for."""
    cell = measure(
        ScriptedWindows(flags=cap(lambda number: number % 2 == 1)),
        rule=StopRule(min_trials=10, max_trials=10),
    )
    assert (len(cell.attempts), len(cell.counted)) == (19, 10)
    assert not any(trial.flags for trial in cell.counted)


def test_lost_readings_do_not_hide_that_most_of_the_others_are_disturbed() -> None:
    """Of ten, four are lost and four of the other six disturbed: those count, with their flags."""
    cell = measure(
        ScriptedWindows(
            reads=lambda number, runtime_s: LOST if number % 5 in {0, 2} else gpu(300 * runtime_s),
            flags=cap(lambda number: number % 5 in {1, 3}),
        ),
        rule=StopRule(min_trials=5, max_trials=10),
    )
    assert (len(cell.attempts), len(cell.counted), cell.error) == (10, 6, None)


def refuse(_: object) -> int:
    raise WrongWorkError("3 tokens of 8")


def test_wrong_work_in_a_warm_up_ends_the_cell() -> None:
    """The next call would do it, too: nothing more is run."""
    cell = measure(ScriptedWindows(), verify=refuse, warmups=[Warmup(first_after_load=True), Warmup()])
    assert len(cell.trials) == 1
    assert cell.error == "3 tokens of 8"
    assert cell.stop is not None
    assert cell.stop.reason == "failed"


@pytest.mark.parametrize("who", ["verify", "account"])
def test_a_trial_of_wrong_work_does_not_count(who: str) -> None:
    """Two good ones, then one that did something else: it is kept, with the reason, and ends the cell."""
    seen = 0

    def from_the_third_on(*_: object) -> Any:
        nonlocal seen
        seen += 1
        if seen > 2:
            refuse(None)
        return 1 if who == "verify" else {}

    cell = measure(ScriptedWindows(), **{who: from_the_third_on})
    assert [trial.excluded for trial in cell.trials] == [None, None, "3 tokens of 8"]
    assert len(cell.counted) == 2
    assert cell.stop is not None
    assert (cell.stop.reason, cell.stop.trials, cell.error) == ("failed", 2, "3 tokens of 8")


class Numbered:
    """Calls that return their number, in windows whose edges are so blurred that they hold several."""

    def __init__(self, **account: Callable[[int], float]) -> None:
        self.windows = ScriptedWindows(
            reads=lambda _, runtime_s: gpu(300 * runtime_s, bound_j=3.0), cpu_s=1000.0
        )
        self.calls = 0
        self.accounted_s: list[float] = []
        self.account_by = account

    def call(self) -> int:
        self.windows.work(RUNTIME_S)
        self.calls += 1
        return self.calls

    def account(self, output: int, runtime_s: float) -> dict[str, float]:
        self.accounted_s.append(runtime_s)
        return {name: by(output) for name, by in self.account_by.items()}

    def measure(self) -> list[Any]:
        """The counted trials; each holds several calls."""
        cell = measure(self.windows, call=self.call, account=self.account, window_error=0.02)
        assert len(cell.counted) == 5
        assert all(trial.repetitions > 1 for trial in cell.counted)
        self.trials = cell.trials
        return cell.counted


def test_the_engines_times_are_means_over_a_windows_calls() -> None:
    """Not those of its last call."""
    numbered = Numbered(ttft_s=lambda number: number / 1000, tpot_s=lambda number: number / 10)
    numbered.measure()
    first = 1
    for trial in numbered.trials:
        mean = first + (trial.repetitions - 1) / 2
        assert trial.ttft_s == pytest.approx(mean / 1000)
        assert trial.tpot_s == pytest.approx(mean / 10)
        assert not {"ttft_s", "tpot_s"} & set(trial.details)
        first += trial.repetitions


def test_the_work_is_accounted_for_with_the_runtime_of_one_call() -> None:
    """With the window's, every call would seem as many times slower as the window holds calls."""
    numbered = Numbered()
    numbered.measure()
    assert len(numbered.accounted_s) == numbered.calls
    assert numbered.accounted_s == pytest.approx([RUNTIME_S] * numbered.calls)


def test_the_meters_own_cost_is_that_of_one_call() -> None:
    """1000 s of CPU time a window, over its calls, as runtime and energy are."""
    for trial in Numbered().measure():
        assert trial.meter_cpu_s == pytest.approx(1000 / trial.repetitions, rel=1e-3)
        assert trial.runtime_s == pytest.approx(RUNTIME_S)
        assert trial.domains[0].energy_j == pytest.approx(300 * RUNTIME_S)
