"""Readings to joules: pure arithmetic against power whose energy is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmenergy.meters.integrate import (
    PowerSample,
    integrate_power,
    latched_difference,
    modular_difference,
)
from tests.doubles.powercurve import LatchedCounter, PowerCurve

POWERS_W = st.floats(0, 500)


@st.composite
def curves(draw: st.DrawFn, shortest_s: float) -> PowerCurve:
    """Power that keeps its height for at least so long."""
    segments, at_s = [], 0.0
    for _ in range(draw(st.integers(1, 12))):
        segments.append((at_s, draw(POWERS_W)))
        at_s += draw(st.floats(shortest_s, 5))
    return PowerCurve(segments)


@settings(deadline=None)
@given(
    curve=curves(0.0),
    period_s=st.floats(0.001, 0.5),
    phase=st.floats(0, 1),
    start_s=st.floats(1, 10),
    runtime_s=st.floats(0.001, 10),
)
def test_a_latched_counters_error_is_within_its_bound_at_any_phase(
    curve: PowerCurve, period_s: float, phase: float, start_s: float, runtime_s: float
) -> None:
    counter = LatchedCounter(curve, period_s, phase * period_s)
    difference_j = counter.energy_j(start_s + runtime_s) - counter.energy_j(start_s)
    found = latched_difference(difference_j, update_period_s=period_s, power_cap_w=500)
    truth_j = curve.energy_j(start_s + runtime_s) - curve.energy_j(start_s)
    assert abs(found.energy_j - truth_j) <= found.bound_j * (1 + 1e-6) + 0.002


@settings(max_examples=300, deadline=None)
@given(
    curve=curves(0.25),
    update_s=st.floats(0.001, 0.1),
    averaging_s=st.sampled_from([0.0, 0.025, 0.1]),
    start_s=st.floats(1, 10),
    runtime_s=st.floats(0.2, 10),
    phase=st.floats(0, 1),
)
def test_sampled_powers_error_is_within_its_bound(
    *, curve: PowerCurve, update_s: float, averaging_s: float, start_s: float, runtime_s: float, phase: float
) -> None:
    """For power that changes less often than it is sampled: every 100 ms."""

    def sensor_w(at_s: float) -> float:
        latched_s = math.floor(at_s / update_s) * update_s
        if averaging_s == 0:
            return curve.power_w(latched_s)
        return (curve.energy_j(latched_s) - curve.energy_j(latched_s - averaging_s)) / averaging_s

    times_s = [0.5 + 0.1 * (number + phase) for number in range(220)]
    samples = [PowerSample(at_s, sensor_w(at_s)) for at_s in times_s]
    found = integrate_power(
        samples, start_s, start_s + runtime_s, update_period_s=update_s, averaging_s=averaging_s
    )
    assert found is not None
    truth_j = curve.energy_j(start_s + runtime_s) - curve.energy_j(start_s)
    assert abs(found.energy_j - truth_j) <= found.bound_j + 1e-6 * truth_j + 1e-9


def test_power_that_rises_just_before_the_end_is_within_the_bound() -> None:
    """The window's edge cuts a step between two samples; the rise may be all on the window's side."""
    curve = PowerCurve([(0, 0.0), (1.65625, 1.0)])
    samples = [PowerSample(at_s, curve.power_w(at_s)) for at_s in (0.95, 1.05, 1.35, 1.65, 1.75)]
    found = integrate_power(samples, 1.0, 1.6875, update_period_s=0.0, averaging_s=0.0)
    assert found is not None
    assert abs(found.energy_j - 0.03125) <= found.bound_j


def test_steady_power_is_integrated_exactly() -> None:
    samples = [PowerSample(number / 10, 120.0) for number in range(50)]
    found = integrate_power(samples, 1.03, 3.57, update_period_s=0.1, averaging_s=1.0)
    assert found is not None
    assert found.energy_j == pytest.approx(120 * 2.54)
    assert found.bound_j == pytest.approx(0, abs=1e-9)


def test_power_that_rises_evenly_is_integrated_exactly() -> None:
    samples = [PowerSample(number / 10, 30.0 * number / 10) for number in range(50)]
    found = integrate_power(samples, 1.03, 3.57, update_period_s=0.0, averaging_s=0.0)
    assert found is not None
    assert found.energy_j == pytest.approx(15 * (3.57**2 - 1.03**2))


def test_no_samples_are_no_energy_and_not_zero() -> None:
    assert integrate_power([], 0, 1, update_period_s=0.1, averaging_s=0) is None


@settings(deadline=None)
@given(
    modulus=st.integers(1000, 2**64),
    start=st.integers(0, 2**64),
    steps=st.lists(st.floats(0, 0.99), max_size=20),
)
def test_a_counter_read_at_least_once_a_round_never_gives_a_negative_or_a_jump(
    modulus: int, start: int, steps: list[float]
) -> None:
    true = counted = start % modulus
    last = true % modulus
    for step in steps:
        true += int(step * modulus)
        counted += modular_difference(last, true % modulus, modulus)
        last = true % modulus
    assert counted == true
