"""How many calls a window holds, and what becomes of disturbed trials; on a driver whose energy is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from pytest_llmenergy.campaign.repetitions import LONGEST_WINDOW_S, repetitions_for
from pytest_llmenergy.campaign.stopping import StopRule
from pytest_llmenergy.campaign.trials import Trials, Warmup, run_trials
from pytest_llmenergy.meters.nvml import open_nvml
from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import DomainEnergy, Provenance, Trial
from tests.doubles.nvml import NvmlDouble
from tests.doubles.powercurve import ManualScheduler

if TYPE_CHECKING:
    from collections.abc import Callable

RULE = StopRule(ci_abs_s=None, ci_rel=0.01)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> NvmlDouble:
    return NvmlDouble(tmp_path_factory.mktemp("nvml"))


class Calls:
    """Calls that last a while on the double's clock."""

    def __init__(self, library: NvmlDouble, scenario: str, *, self_check_s: float) -> None:
        library.load(f"clock manual\ngpu A\n{scenario}\n")
        self.scheduler = ManualScheduler(on_advance=library.set_clock)
        self.meters = Meters(
            [open_nvml(self.scheduler, self_check_s=self_check_s)], clock=self.scheduler.clock
        )

    def run(self, runtime_s: float, window_error: float | None, **options: object) -> Trials:
        return run_trials(
            lambda: self.scheduler.advance(runtime_s),
            meters=self.meters,
            rule=RULE,
            verify=lambda _: 1,
            warmups=[Warmup()],
            window_error=window_error,
            on_trial=lambda *_: None,
            **options,
        )


@pytest.mark.parametrize("self_check_s", [0, 2.0])
def test_short_calls_are_repeated_in_one_window_until_its_energy_is_known_well_enough(
    library: NvmlDouble, self_check_s: float
) -> None:
    """The record says how many a window held; figures are those of one call."""
    cell = Calls(library, "power 0 0 300", self_check_s=self_check_s).run(0.05, 0.02)
    assert cell.counted
    for trial in cell.counted:
        (part,) = trial.domains
        assert trial.repetitions > 1
        assert part.bound_j <= 0.02 * part.energy_j
        assert part.energy_j == pytest.approx(0.05 * 300, rel=0.02)
        assert trial.runtime_s == pytest.approx(0.05)


def test_a_followed_counter_needs_far_fewer_repetitions(library: NvmlDouble) -> None:
    """That is what following its ticks is for."""
    counts = [
        Calls(library, "power 0 0 300", self_check_s=self_check_s).run(0.05, 0.02).counted[-1].repetitions
        for self_check_s in (0, 2.0)
    ]
    assert counts[1] < counts[0] / 10


def test_long_calls_are_not_repeated(library: NvmlDouble) -> None:
    cell = Calls(library, "power 0 0 300", self_check_s=2.0).run(3.0, 0.02)
    assert {trial.repetitions for trial in cell.trials} == {1}
    assert len(cell.counted) == 5


def test_repetition_can_be_switched_off(library: NvmlDouble) -> None:
    cell = Calls(library, "power 0 0 300", self_check_s=2.0).run(0.05, None)
    assert {trial.repetitions for trial in cell.trials} == {1}


def trial(
    runtime_s: float, energy_j: float | None, bound_j: float | None, reason: str | None = None
) -> Trial:
    provenance = Provenance.UNAVAILABLE if energy_j is None else Provenance.MEASURED
    part = DomainEnergy(
        domain="gpu:0", energy_j=energy_j, provenance=provenance, bound_j=bound_j, reason=reason
    )
    return Trial(index=0, runtime_s=runtime_s, domains=(part,))


def test_no_window_is_made_longer_than_a_limit() -> None:
    assert repetitions_for(trial(10.0, 100.0, 90.0), 0.02) == LONGEST_WINDOW_S / 10
    assert repetitions_for(trial(100.0, 100.0, 90.0), 0.02) == 1


def test_a_window_without_a_reading_because_it_was_too_short_grows() -> None:
    assert repetitions_for(trial(0.01, None, None, "too short: the counter did not move"), 0.02) > 1
    assert repetitions_for(trial(0.01, None, None, "GPU is lost"), 0.02) == 1


def test_a_part_that_idles_does_not_stretch_the_window() -> None:
    """Its energy cannot be told from nothing, and is too little to matter for the sum."""
    long_enough = trial(2.0, 600.0, 3.0)
    idle = DomainEnergy(
        domain="dram:0",
        energy_j=0.1,
        bound_j=0.6,
        provenance=Provenance.MEASURED,
        reason="too short: 100 mJ +- 600 mJ cannot be told from 0",
    )
    both = msgspec.structs.replace(long_enough, domains=(*long_enough.domains, idle))
    assert repetitions_for(both, 0.02) == repetitions_for(long_enough, 0.02) == 1
    alone = msgspec.structs.replace(long_enough, domains=(idle,))
    assert repetitions_for(alone, 0.02) > 1


def test_an_estimate_does_not_stretch_the_window() -> None:
    """No number of calls makes a model of the hardware any surer."""
    measured = trial(2.0, 600.0, 3.0)
    estimate = DomainEnergy(
        domain="cpu:package-0", energy_j=10.0, bound_j=100.0, provenance=Provenance.ESTIMATED
    )
    both = msgspec.structs.replace(measured, domains=(*measured.domains, estimate))
    assert repetitions_for(both, 0.02) == repetitions_for(measured, 0.02) == 1


def disturbed(library: NvmlDouble, flags: Callable[[float], tuple[str, ...]]) -> Trials:
    calls = Calls(library, "power 0 0 300", self_check_s=2.0)

    class Watch:
        def begin(self) -> float:
            return calls.scheduler.now_s

        def end(self, mark: float) -> tuple[str, ...]:
            return flags(mark)

    calls.meters._watches = (Watch(),)
    return calls.run(3.0, 0.02)


def test_a_disturbed_trial_is_kept_with_its_reason_and_repeated(library: NvmlDouble) -> None:
    cell = disturbed(library, lambda at_s: ("gpu:0: power cap",) if 10 < at_s < 14 else ())
    marked = [trial for trial in cell.trials if trial.flags]
    assert marked
    assert all(trial.excluded == "disturbed: gpu:0: power cap" for trial in marked if not trial.warmup)
    assert len(cell.counted) == 5
    assert not any(trial.flags for trial in cell.counted)


def test_what_does_not_end_is_the_condition_of_the_measurement_and_counts(library: NvmlDouble) -> None:
    """Otherwise a GPU at its power cap could not be measured at all; the flags stay."""
    cell = disturbed(library, lambda _: ("gpu:0: power cap",))
    assert len(cell.counted) == 5
    assert all(trial.flags for trial in cell.counted)
