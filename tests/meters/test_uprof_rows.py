"""The recorder's file, followed while it grows."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.meters.uprof import UprofMeter
from pytest_llmenergy.meters.uprof_rows import Rows
from pytest_llmenergy.meters.window import Meters
from tests.doubles.powercurve import ManualScheduler

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "Sampling Interval:,100 milli-seconds\nRecordId,Timestamp,socket0-package-power,core0-power\n"


def stamp(at: dt.datetime) -> str:
    return f"{at.hour}:{at.minute}:{at.second}:{at.microsecond // 1000:03d}"


@pytest.mark.parametrize(("hour", "age_h"), [(10, 11.0), (23, 0.0), (1, 2.0)])
def test_a_row_without_a_date_was_written_within_the_last_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hour: int, age_h: float
) -> None:
    """A row of 23:00 that is read at 10:00 is of the day before."""
    now = dt.datetime(2026, 3, 4, hour).timestamp()  # noqa: DTZ001 - local, as the rows are
    monkeypatch.setattr(time, "time", lambda: now)
    chart = tmp_path / "timechart.csv"
    chart.write_text(f"{HEADER}1,23:00:00:000,100,1\n")
    rows = Rows(lambda: chart, lambda: 5000.0)
    rows.read()
    assert rows.newest_s == pytest.approx(5000 - 3600 * age_h)


class Written:
    """A recorder whose file is there already."""

    is_running = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def csv(self) -> Path:
        return self._path


def test_rows_are_kept_for_the_windows_that_need_them_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of ten hours has 360 000 rows of up to 4 kB; an open window of minutes needs its own."""
    now = dt.datetime.now()  # noqa: DTZ005 - local, as the rows are
    lines = [f"{n},{stamp(now + dt.timedelta(seconds=0.1 * n - 300))},50,1\n" for n in range(3001)]
    (tmp_path / "timechart.csv").write_text(HEADER + "".join(lines))
    scheduler = ManualScheduler(now_s=1000 - 250)
    monkeypatch.setattr(time, "time", lambda: now.timestamp() - 1000 + scheduler.now_s)
    meter = UprofMeter(Written(tmp_path / "timechart.csv"), scheduler, Machine(), tmp_path)  # type: ignore[arg-type]
    meters = Meters([meter], clock=scheduler.clock)
    with meters.window() as window:
        scheduler._due.clear()  # no residency: only packages are looked at
        scheduler.now_s = 1000.0
        meter.power_w()  # a trace reads meanwhile
        scheduler.now_s = 998.0
    package = next(part for part in window.domains if part.domain == "cpu:package-0")
    assert package.energy_j == pytest.approx(50 * 248, rel=0.001)
    scheduler.now_s = 1000.0
    meter.power_w()
    assert len(meter._rows._chart.rows) < 200
