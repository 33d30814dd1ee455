"""Power with nothing to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.meters.idle import Idle, IdlePower, drift, measure_idle
from pytest_llmenergy.meters.nvml import open_nvml
from pytest_llmenergy.meters.window import Meters

if TYPE_CHECKING:
    from tests.doubles.nvml import NvmlDouble
    from tests.doubles.powercurve import ManualScheduler


def test_idle_power_is_that_of_windows_without_work(nvml: NvmlDouble, scheduler: ManualScheduler) -> None:
    nvml.load("clock manual\ngpu A\npower 0 0 60\npower 0 6 62\npower 0 7 60")
    meters = Meters([open_nvml(scheduler)], clock=scheduler.clock)
    scheduler.advance(5 - scheduler.now_s)
    idle = measure_idle(meters, 5.0, sleep=scheduler.advance)
    found = idle.domains["gpu:0"]
    assert idle.runtime_s == pytest.approx(5.0)
    assert found.power_w == pytest.approx(60.4, abs=0.2)
    assert found.spread_w == pytest.approx(0.9, abs=0.2)
    assert idle.record("before")["domains"]["gpu:0"]["provenance"] == "measured"


def test_a_domain_that_lost_a_window_has_no_baseline(nvml: NvmlDouble, scheduler: ManualScheduler) -> None:
    nvml.load("clock manual\ngpu A\npower 0 0 60\nerror nvmlDeviceGetTotalEnergyConsumption 0 15 6.9 7.1")
    meters = Meters([open_nvml(scheduler)], clock=scheduler.clock)
    scheduler.advance(5 - scheduler.now_s)
    assert not measure_idle(meters, 5.0, sleep=scheduler.advance).domains


def baseline(power_w: float, spread_w: float) -> Idle:
    return Idle(
        runtime_s=10,
        domains={"gpu:0": IdlePower(power_w=power_w, spread_w=spread_w, provenance="measured")},
    )


@pytest.mark.parametrize(("after_w", "has_drifted"), [(61, False), (64, False), (68, True), (50, True)])
def test_a_drift_beyond_the_spread_is_told(after_w: float, *, has_drifted: bool) -> None:
    found = drift(baseline(60, 1), baseline(after_w, 1))
    assert bool(found) is has_drifted
    assert all("60.0 W" in text for text in found)
