"""Conversions and formats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy import units


@pytest.mark.parametrize(
    ("energy_j", "text"),
    [
        (None, "-"),
        (0.0, "0 J"),
        (0.00123, "1.23 mJ"),
        (0.9996, "1.00 J"),
        (12.34, "12.3 J"),
        (123.4, "123 J"),
        (123456.0, "123 kJ"),
        (-2.5, "-2.50 J"),
    ],
)
def test_an_energy_reads_with_three_digits_and_its_prefix(energy_j: float | None, text: str) -> None:
    """Three significant digits, the prefix chosen after rounding, unknown a dash."""
    assert units.format_energy(energy_j) == text


@given(st.floats(1e-8, 1e8))
def test_a_format_is_never_further_off_than_its_digits(energy_j: float) -> None:
    """The text, read back, is within half a unit of its third digit."""
    number, unit = units.format_energy(energy_j).split(" ")
    scale = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}[unit.removesuffix("J")]
    assert float(number) * scale == pytest.approx(energy_j, rel=0.0051)


def test_each_meter_unit_becomes_joules_or_watts() -> None:
    """NVML counts mJ and mW, powercap µJ."""
    assert units.joules_from_millijoules(1500) == 1.5
    assert units.joules_from_microjoules(2_000_000) == 2.0
    assert units.watts_from_milliwatts(312_000) == 312.0
    assert units.kilowatt_hours_from_joules(3.6e6) == 1.0


@pytest.mark.parametrize(("text", "fraction"), [("5%", 0.05), ("0.05", 0.05), (" 1 %", 0.01)])
def test_a_share_reads_as_percent_or_number(text: str, fraction: float) -> None:
    """5% and 0.05 are the same."""
    assert units.parse_fraction(text) == pytest.approx(fraction)


@pytest.mark.parametrize(("wait_s", "text"), [(12, "12 s"), (200, "3 min"), (7500, "2 h 05 min")])
def test_a_wait_reads_coarsely(wait_s: float, text: str) -> None:
    """Nobody needs the seconds of two hours."""
    assert units.format_wait(wait_s) == text


def test_runtimes_keep_seconds_above_one() -> None:
    """1200 s, never 1.20 ks."""
    assert units.format_runtime(1200.0) == "1200 s"
    assert units.format_runtime(0.0042) == "4.20 ms"


@pytest.mark.parametrize(
    ("value", "up", "down"), [(1.23401, 1.235, 1.234), (0.1, 0.1, 0.1), (70000.0, 70000.0, 70000.0)]
)
def test_a_limit_may_be_typed_as_it_is_printed(value: float, up: float, down: float) -> None:
    """Rounded to the side that keeps it."""
    assert (units.round_up(value), units.round_down(value)) == (up, down)


def test_one_of_a_thing_is_not_plural() -> None:
    """1 query, 0 queries."""
    assert units.format_count(1, "query", "queries") == "1 query"
    assert units.format_count(0, "query", "queries") == "0 queries"
