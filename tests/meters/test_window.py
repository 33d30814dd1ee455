"""The interval whose energy is attributed."""

from __future__ import annotations

import pytest

from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import MeterSource, Provenance
from tests.doubles.powercurve import ManualScheduler
from tests.doubles.windows import ScriptedWindows


def test_a_background_reading_that_has_ended_marks_every_window_from_then_on() -> None:
    """A watch that is gone sees nothing: its silence must not look like calm."""
    scheduler = ManualScheduler()
    meters = Meters([], sampler=scheduler, clock=scheduler.clock)
    with meters.window() as before:
        pass
    scheduler.failures.append(OSError("no such file"))
    with meters.window() as after:
        pass
    assert before.flags == ()
    assert after.flags == ("meters: a background reading has ended: OSError: no such file",)


def test_the_samplers_cpu_time_is_the_meters_cost() -> None:
    scheduler = ManualScheduler()
    meters = Meters([], sampler=scheduler, clock=scheduler.clock)
    scheduler.cpu_s = 3.0
    with meters.window() as window:
        scheduler.cpu_s = 3.5
    assert window.meter_cpu_s == pytest.approx(0.5, abs=0.1)


class Told:
    source = MeterSource(
        name="nvml",
        available=True,
        provenance=Provenance.MEASURED,
        reason="gpu:1: GPU is lost",
        details={"gpu:0": {"self_check": "failed: by 30 %"}, "gpu:2": {"self_check": "passed"}, "cores": 3},
    )


def test_what_a_person_should_know_of_the_sources_is_told() -> None:
    assert Meters([Told()]).notices == ("nvml: gpu:1: GPU is lost", "gpu:0: self-check failed: by 30 %")  # type: ignore[list-item]


def test_meters_end_also_when_the_block_raises() -> None:
    scripted = ScriptedWindows()
    window = None

    def block() -> None:
        nonlocal window
        with scripted.meters.window() as window:
            scripted.work(2.0)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert window is not None
    assert window.runtime_s == 2.0
    assert [part.energy_j for part in window.domains] == [600.0]
