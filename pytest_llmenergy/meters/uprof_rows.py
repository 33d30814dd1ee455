"""The recorder's file, followed while it grows: its rows by our clock, as far back as they are needed."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.uprof_csv import Interval, Timechart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_DAY_S = 86400.0
_QUICK_S = 0.0005  # a look at two clocks that took longer was interrupted, and is repeated
_LOOKS = 10


class Rows:
    """Rows come in blocks: the CLI writes its file when a buffer is full (4096 bytes in real records)."""

    def __init__(self, find: Callable[[], Path | None], clock: Callable[[], float]) -> None:
        self._find = find
        self._clock = clock
        self._chart = Timechart()
        self._read_so_far = 0
        self._offset_s: float | None = None  # from the chart's local time to our clock
        self._wall_s = 0.0  # of the system's clock at our clock's zero
        self._found: list[Interval] = []
        self._is_found = True  # all rows that have come
        self.block_s = 0.0  # the longest that rows were seen to have been held back

    @property
    def has_header(self) -> bool:
        """Whether the header of the records has come."""
        return self._chart.has_header

    @property
    def version(self) -> str | None:
        """Of the CLI."""
        return self._chart.version

    @property
    def interval_s(self) -> float:
        """Between two records."""
        return self._chart.interval_s

    @property
    def packages(self) -> dict[str, int]:
        """Domain of each package -> its column."""
        domains = enumerate(self._chart.domains)
        return {f"cpu:package-{number}": column for column, (kind, number) in domains if kind == "package"}

    @property
    def cores(self) -> dict[int, int]:
        """Physical core -> its column."""
        return {number: column for column, (kind, number) in enumerate(self._chart.domains) if kind == "core"}

    @property
    def newest_s(self) -> float | None:
        """The end of the last row that has come; None before the first."""
        found = self.intervals()
        return found[-1].end_s if found else None

    def read(self) -> None:
        """Take what has been written since."""
        path = self._find()
        if path is None:
            return
        with path.open("rb") as file:
            file.seek(self._read_so_far)
            content = file.read()
        self._read_so_far += len(content)
        new = self._chart.feed(content.decode("utf-8", errors="replace"))
        if not new:
            return
        if self._offset_s is None:
            self._align(new[0].time_of_day_s)
        self._is_found = False

    def intervals(self) -> list[Interval]:
        """The rows that are kept, by our clock."""
        if not self._is_found:
            is_first, self._is_found = not self._found, True
            self._found = self._by_our_clock()
            # How old the newest row is when seen, and of the first block how old its first row had become.
            held_s = self._clock() - (self._found[0] if is_first else self._found[-1]).end_s
            self.block_s = max(self.block_s, held_s)
        return self._found

    @property
    def last_power_w(self) -> tuple[float, ...]:
        """Of the row that came last; empty before the first."""
        rows = self._chart.rows
        return rows[next(reversed(rows))].power_w if rows else ()

    def forget(self, before_s: float) -> None:
        """Keep only what has come since; a row of 128 cores is 4 kB, and ten come a second."""
        if self._offset_s is not None and self._found and self._found[0].end_s < before_s - 10.0:
            self._chart.forget(before_s - self._offset_s)
            self._found = self._by_our_clock()
            self._is_found = True

    def clock_set_s(self) -> float:
        """By how much the system's clock was set since the first row came."""
        return 0.0 if self._offset_s is None else self._clocks()[1] - self._wall_s

    def _by_our_clock(self) -> list[Interval]:
        offset_s = self._offset_s or 0.0
        return [
            Interval(step.start_s + offset_s, step.end_s + offset_s, step.power_w, step.gap_s)
            for step in self._chart.intervals()
        ]

    def _clocks(self) -> tuple[float, float]:
        """Our clock, and the system's less ours, both in s, at one time."""
        looks = []
        for _ in range(_LOOKS):
            before_s, wall_s, after_s = self._clock(), time.time(), self._clock()
            looks.append((after_s - before_s, before_s, wall_s - before_s))
            if after_s - before_s < _QUICK_S:
                break
        return min(looks)[1:]

    def _align(self, first_s: float) -> None:
        """Rows have a local time of day and no date: the first was written within the last hours."""
        now_s, self._wall_s = self._clocks()
        local = dt.datetime.fromtimestamp(now_s + self._wall_s)  # noqa: DTZ006 - the chart's times are local
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        today_s = (local - midnight).total_seconds()
        if first_s > today_s + _DAY_S / 2:
            today_s += _DAY_S  # it was written before midnight
        self._offset_s = now_s - today_s
