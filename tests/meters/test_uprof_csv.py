"""The timechart's CSV: layouts, times, gaps and damage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmenergy.meters.machine import TICK_S
from pytest_llmenergy.meters.residency import Residency
from pytest_llmenergy.meters.uprof_csv import Interval, Row, Timechart, intervals, unroll
from pytest_llmenergy.meters.uprof_energy import attributed, energy_of_intervals, share_doubt_j
from tests.doubles.powercurve import PowerCurve

REAL = Path(__file__).parents[2].parent / "shared" / "paper" / "timecharts"


def real(name: str) -> str:
    path = REAL / name
    if not path.exists():
        pytest.skip("the real AMD uProf records are not beside this repository")
    return path.read_text()


def chart(
    rows: list[str],
    *,
    version: str = "4.1.424.0",
    columns: str = "socket0-package-power,core0-power",
    program: bool = True,
    end: str = "",
) -> str:
    """A small file in the real layout."""
    launched = "LAUNCHED APPLICATION DETAILS\nTarget Path:,cat,\n\n" if program else ""
    return (
        f"AMDPROFILER POWER PROFILE REPORT\n\nAMDuProfCLI Version {version}\n\n{launched}"
        "PROFILE DETAILS\nSampling Interval:,100 milli-seconds\nProfile Start Time:,Mar-28-2024_11-15-48,\n\n"
        "PROFILED COUNTERS\nCOUNTER ID,NAME,CATEGORY,UNIT,DESCRIPTION\n768.,x,Power,W,x\n\n"
        f"PROFILE RECORDS\nRecordId,Timestamp,{columns}{end}\n" + "".join(f"{row}{end}\n" for row in rows)
    )


ROWS = ["1,11:15:50:100,  100.00,    2.00", "2,11:15:50:200,  200.00,    4.00"]


def test_a_real_record_with_missing_rows_is_read_whole() -> None:
    """2 x EPYC 7742: two records are missing, the steps there are longer, and the last row is torn."""
    found = Timechart()
    rows = found.feed(real("timechart_llama2-7b_gap.csv"))
    assert found.version == "4.1.424.0"
    assert found.interval_s == 0.1
    assert sum(kind == "package" for kind, _ in found.domains) == 2
    assert sum(kind == "core" for kind, _ in found.domains) == 128
    assert [rows[0].record, rows[0].power_w[0], rows[0].power_w[2]] == [88, 107.69, 0.21]
    steps = found.intervals()
    missing = rows[-1].record - rows[0].record + 1 - len(rows)
    assert missing == 2
    assert rows[-1].record == 140
    assert sum(step.gap_s for step in steps) == pytest.approx(0.1 * missing, abs=0.02)
    assert steps[-1].end_s - steps[0].start_s == pytest.approx(0.1 * (len(rows) + missing), abs=0.02)
    energy_j = sum(step.power_w[1] * (step.end_s - step.start_s) for step in steps)
    assert 150 < energy_j / (steps[-1].end_s - steps[0].start_s) < 260  # W of the second package


def test_a_real_file_with_a_header_only_has_no_energy() -> None:
    found = Timechart()
    assert found.feed(real("timechart_header-only_no-records.csv")) == []
    assert found.has_header
    assert found.intervals() == []


@pytest.mark.parametrize("version", ["3.6.839.0", "4.0.341.0", "4.2.850.0", "5.0.1479.0", "5.3.100.0"])
@pytest.mark.parametrize("program", [True, False])
@pytest.mark.parametrize("end", ["", ","])
def test_a_layout_is_read_by_its_header(version: str, end: str, *, program: bool) -> None:
    found = Timechart()
    rows = found.feed(chart(ROWS, version=version, program=program, end=end))
    assert found.version == version
    assert [row.power_w for row in rows] == [(100.0, 2.0), (200.0, 4.0)]


def test_other_columns_are_left_out_wherever_they_stand() -> None:
    found = Timechart()
    columns = "core0-effective-freq,socket1-package-power,socket0-temperature,core7-power"
    rows = found.feed(chart(["1,11:15:50:100,3200,90,55,1.5"], columns=columns))
    assert found.domains == (("package", 1), ("core", 7))
    assert rows[0].power_w == (90.0, 1.5)


def test_a_file_that_is_still_written_is_read_line_by_line() -> None:
    text = chart(ROWS)
    found = Timechart()
    rows = [row for part in range(0, len(text), 7) for row in found.feed(text[part : part + 7])]
    assert [row.record for row in rows] == [1, 2]


def test_a_torn_last_line_is_no_row() -> None:
    found = Timechart()
    found.feed(chart(ROWS)[:-4])
    assert [row.record for row in found.rows.values()] == [1]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["23:59:59:900", "0:0:0:0", "0:0:0:100"], [0, 0.1, 0.2]),
        (["1:59:59:900", "3:0:0:0", "3:0:0:100"], [0, 0.1, 0.2]),  # summer time begins
        (["2:59:59:900", "2:0:0:0", "2:0:0:100"], [0, 0.1, 0.2]),  # and ends
        (["11:15:57:167", "11:15:57:367", "11:15:57:467"], [0, 0.2, 0.3]),
    ],
)
def test_time_goes_on_over_midnight_and_a_change_of_summer_time(
    times: list[str], seconds: list[float]
) -> None:
    found = Timechart()
    rows = found.feed(chart([f"{number},{at},1,1" for number, at in enumerate(times)]))
    unrolled = unroll(row.time_of_day_s for row in rows)
    assert [at_s - unrolled[0] for at_s in unrolled] == pytest.approx(seconds)


def test_what_is_missing_is_counted_at_the_lower_of_its_neighbours_powers() -> None:
    found = Timechart()
    found.feed(chart(["1,11:15:50:100,100,2", "4,11:15:50:400,200,1"]))
    gap = found.intervals()[1]
    assert gap.power_w == (100.0, 1.0)
    assert gap.gap_s == pytest.approx(0.2)


def test_the_doubt_in_a_share_is_a_tick_at_either_end_on_every_core_of_ours() -> None:
    """CPU time is counted in steps of 10 ms."""
    steps = [Interval(0.0, 0.1, (10.0, 4.0)), Interval(0.1, 0.2, (20.0, 6.0))]
    records = [Residency(0.0, 0.2, {0: 1.0, 1: 0.5, 9: 1.0})]
    assert share_doubt_j(steps, records, {0: 0, 1: 1}) == pytest.approx(2 * TICK_S * (20 + 6))


def made_rows(source: random.Random, count: int) -> list[Row]:
    return [
        Row(number, 40000 + 0.1 * number, (round(source.uniform(50, 300), 2),))
        for number in range(1, count + 1)
    ]


def energy_j(rows: list[Row]) -> float:
    return sum(step.power_w[0] * (step.end_s - step.start_s) for step in intervals(rows, 0.1))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 60))
def test_rows_in_any_order_and_twice_have_the_same_energy(seed: int, count: int) -> None:
    source = random.Random(seed)
    rows = made_rows(source, count)
    lines = [f"{r.record},{_clock(r.time_of_day_s)},{r.power_w[0]:.2f},0" for r in rows]
    mixed = lines + source.choices(lines, k=count)
    source.shuffle(mixed)
    straight, shuffled = Timechart(), Timechart()
    straight.feed(chart(lines))
    shuffled.feed(chart(mixed))
    assert energy_j(list(shuffled.rows.values())) == pytest.approx(energy_j(list(straight.rows.values())))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(3, 60), data=st.data())
def test_rows_cut_anywhere_never_crash_nor_raise_the_energy(
    seed: int, count: int, data: st.DataObject
) -> None:
    """A cut row, in the middle or at the end, is lost or reads low; it never invents energy."""
    rows = made_rows(random.Random(seed), count)
    lines = [f"{r.record},{_clock(r.time_of_day_s)},{r.power_w[0]:.2f}" for r in rows]
    text = chart(lines, columns="socket0-package-power")
    cut = data.draw(st.integers(text.index("RecordId"), len(text)))
    found = Timechart()
    found.feed(text[:cut])
    assert energy_j(list(found.rows.values())) <= energy_j(rows) + 1e-6 * count


@pytest.mark.parametrize("lost_share", [0.0, 0.03])
def test_99_of_100_windows_are_within_their_bound_also_where_records_are_missing(lost_share: float) -> None:
    """Rows hold means over their intervals; what is missing is counted at its lower neighbour."""
    source = random.Random(lost_share)
    within = 0
    for _ in range(300):
        segments, at_s = [], 0.0
        while at_s < 8:
            segments.append((at_s, source.uniform(50, 300)))
            at_s += source.expovariate(2.0)
        curve = PowerCurve(segments)
        ends_s = [0.1 * number for number in range(1, 80)]
        rows = [
            Row(number, 40000 + end_s, ((curve.energy_j(end_s) - curve.energy_j(end_s - 0.1)) / 0.1,))
            for number, end_s in enumerate(ends_s)
            if source.random() >= lost_share
        ]
        start_s = source.uniform(1, 4)
        end_s = start_s + source.uniform(0.2, 3)
        found = energy_of_intervals(intervals(rows, 0.1), 40000 + start_s, 40000 + end_s)
        truth_j = curve.energy_j(end_s) - curve.energy_j(start_s)
        within += abs(found.energy_j - truth_j) <= found.bound_j
    assert within >= 0.99 * 300


def _clock(at_s: float) -> str:
    whole_ms = round(1000 * at_s)
    hours, rest_ms = divmod(whole_ms, 3_600_000)
    minutes, rest_ms = divmod(rest_ms, 60_000)
    return f"{hours}:{minutes}:{rest_ms // 1000}:{rest_ms % 1000:03d}"


def test_attributed_power_is_that_of_our_cores_and_our_share_of_them() -> None:
    steps = [Interval(0.0, 0.1, (10.0, 4.0)), Interval(0.1, 0.2, (20.0, 6.0))]
    records = [Residency(0.0, 0.15, {0: 1.0}), Residency(0.15, 0.2, {0: 0.5, 1: 1.0, 9: 1.0})]
    found = attributed(steps, records, {0: 0, 1: 1})
    assert [step.power_w[0] for step in found] == pytest.approx([10.0, 0.5 * 20 + 0.5 * (10 + 6)])


@pytest.mark.parametrize(
    "row",
    [
        "3,11:15:50:300,  nan,    4.00",
        "3,11:15:50:300,  inf,    4.00",
        "3,11:15:50:300,  -5.00,    4.00",
        "3,11:15:50:300,  200.00,    4.4,11:15:50:400,  200.00,    4.00",  # the next row ran into it
    ],
)
def test_a_row_that_no_machine_can_have_written_is_no_row(row: str) -> None:
    found = Timechart()
    found.feed(chart([*ROWS, row]))
    assert sorted(found.rows) == [1, 2]
    assert found.torn == 1


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(3, 40), data=st.data())
def test_bytes_lost_anywhere_in_the_records_raise_the_energy_by_one_row_at_most(
    seed: int, count: int, data: st.DataObject
) -> None:
    """Rows run into one another then, and numbers too: a row may be wrong, within what a package can draw."""
    rows = made_rows(random.Random(seed), count)
    lines = [f"{r.record},{_clock(r.time_of_day_s)},{r.power_w[0]:8.2f}" for r in rows]
    text = chart(lines, columns="socket0-package-power")
    begin = data.draw(st.integers(text.index("RecordId") + 42, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    found = Timechart()
    found.feed(text[:begin] + text[end:])
    assert energy_j(list(found.rows.values())) <= energy_j(rows) + 0.3 * 2000


def test_rows_that_are_forgotten_leave_the_times_of_the_others() -> None:
    """Also over midnight: a session goes on for days, and no one keeps its rows."""
    times = ["23:59:59:800", "23:59:59:900", "0:0:0:0", "0:0:0:100", "0:0:0:200"]
    found = Timechart()
    found.feed(chart([f"{number},{at},1,1" for number, at in enumerate(times)]))
    whole = found.intervals()
    found.forget(whole[3].start_s)
    assert sorted(found.rows) == [2, 3, 4]
    assert found.intervals()[-2:] == whole[-2:]
    found.feed("5,0:0:0:300,1,1\n")
    assert found.intervals()[-1].end_s == pytest.approx(whole[-1].end_s + 0.1)
