"""The CSV of `AMDuProfCLI timechart`, read while it is being written (versions 3 to 5).

A row's power is the mean over the interval that ends at its time. The layout is found by the header row,
whose place depends on the counters and on whether a program was started. Times are local, without a zone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llmenergy import units

if TYPE_CHECKING:
    from collections.abc import Iterable

_DAY_S = 86400.0
_HOUR_S = 3600.0
_HIGHEST_W = 2000.0  # no package draws as much: two numbers that ran into one another
_LONGEST_STEP = 3  # intervals: a row is not the mean of more
_PACKAGE = re.compile(r"socket(\d+)-package-power", re.IGNORECASE)
_CORE = re.compile(r"core(\d+)-power", re.IGNORECASE)
_TIME = re.compile(r"(\d{1,2}):(\d{1,2}):(\d{1,2})[:.](\d{1,3})")
_INTERVAL = re.compile(r"(\d+)\s*milli")
_VERSION = re.compile(r"Version\s+([\d.]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One record: its number, its local time of day in s, and a power in W a column."""

    record: int
    time_of_day_s: float
    power_w: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """Powers over (start_s, end_s], in s since the profile's local midnight; gap_s of it was not recorded."""

    start_s: float
    end_s: float
    power_w: tuple[float, ...]
    gap_s: float = 0.0


@dataclass(slots=True)
class Timechart:
    """What has been read of the file so far."""

    version: str | None = None
    interval_s: float = 0.1
    domains: tuple[tuple[str, int], ...] = ()  # ("package" | "core", number) of each power column
    rows: dict[int, Row] = field(default_factory=dict)
    torn: int = 0  # rows that could not be read
    _columns: tuple[int, ...] = ()
    _time_column: int = -1
    _record_column: int = -1
    _width: tuple[int, int] = (0, 0)  # fields of a row, without and with one for a comma at its end
    _shift_s: float = 0.0  # what midnights and summer time have added before the rows that are kept
    _rest: str = ""

    @property
    def has_header(self) -> bool:
        """Whether the header row of the records has come."""
        return bool(self._columns)

    def feed(self, text: str) -> list[Row]:
        """Read what has been written since; a line without its end is kept for the next time."""
        *lines, self._rest = (self._rest + text).split("\n")
        new = []
        for line in lines:
            row = self._line(line.rstrip("\r"))
            if row is not None and row.record not in self.rows:
                self.rows[row.record] = row
                new.append(row)
        return new

    def _line(self, line: str) -> Row | None:
        if not self.has_header:
            self._heading(line)
            return None
        fields = [part.strip() for part in line.split(",")]
        if not fields[0]:
            return None
        try:
            return self._row(fields)
        except ValueError:
            self.torn += 1
            return None

    def _row(self, fields: list[str]) -> Row:
        # A row may be cut anywhere, also inside its last number, and run on into the next one.
        if len(fields) not in self._width or any(fields[self._width[0] :]):
            raise ValueError(fields)
        match = _TIME.fullmatch(fields[self._time_column])
        powers_w = tuple(float(fields[column]) for column in self._columns)
        if match is None or not all(0 <= power_w <= _HIGHEST_W for power_w in powers_w):
            raise ValueError(fields)
        hours, minutes, seconds, milliseconds = (int(group) for group in match.groups())
        time_s = hours * _HOUR_S + minutes * 60 + seconds + units.seconds_from_milliseconds(milliseconds)
        return Row(int(fields[self._record_column]), time_s, powers_w)

    def _heading(self, line: str) -> None:
        if "Version" in line and self.version is None and (match := _VERSION.search(line)):
            self.version = match[1]
        elif line.startswith("Sampling Interval") and (match := _INTERVAL.search(line)):
            self.interval_s = units.seconds_from_milliseconds(int(match[1]))
        else:
            names = [part.strip() for part in line.split(",")]
            lowered = [name.lower() for name in names]
            if "recordid" in lowered and "timestamp" in lowered:
                self._header(names, lowered)

    def _header(self, names: list[str], lowered: list[str]) -> None:
        self._record_column, self._time_column = lowered.index("recordid"), lowered.index("timestamp")
        columns, domains = [], []
        for column, name in enumerate(names):
            if match := _PACKAGE.fullmatch(name):
                columns.append(column)
                domains.append(("package", int(match[1])))
            elif match := _CORE.fullmatch(name):
                columns.append(column)
                domains.append(("core", int(match[1])))
        self._columns, self.domains = tuple(columns), tuple(domains)
        # A trailing comma makes an empty last field, in the header or in the rows.
        width = len(names) if names[-1] else len(names) - 1
        self._width = (width, width + 1)

    def intervals(self) -> list[Interval]:
        """The records as intervals of time, in their order."""
        return intervals(self.rows.values(), self.interval_s, self._shift_s)

    def forget(self, before_s: float) -> None:
        """Drop the rows whose intervals ended before this time; the last is kept."""
        ordered = sorted(self.rows.values(), key=lambda row: row.record)
        times_s = unroll((row.time_of_day_s for row in ordered), self.interval_s, self._shift_s)
        for row, time_s in zip(ordered[:-1], times_s, strict=False):
            if time_s >= before_s:
                break
            del self.rows[row.record]
        first = len(ordered) - len(self.rows)
        if first:
            self._shift_s = times_s[first] - ordered[first].time_of_day_s


def unroll(times_of_day_s: Iterable[float], interval_s: float = 0.1, shift_s: float = 0.0) -> list[float]:
    """Times of day, in order, as seconds that go on over midnight and over a change of summer time."""
    unrolled: list[float] = []
    previous_s: float | None = None
    for time_s in times_of_day_s:
        if previous_s is not None:
            step_s = time_s - previous_s
            if step_s < -_DAY_S / 2:
                shift_s += _DAY_S
                step_s += _DAY_S
            # The clock was put back or on by an hour between two records that are an interval apart.
            if abs(step_s + _HOUR_S) < _HOUR_S / 4:
                shift_s += _HOUR_S
            elif abs(step_s - _HOUR_S) < max(1.0, 10 * interval_s):
                shift_s -= _HOUR_S
        previous_s = time_s
        unrolled.append(time_s + shift_s)
    return unrolled


def intervals(rows: Iterable[Row], interval_s: float, shift_s: float = 0.0) -> list[Interval]:
    """Rows as intervals, by their numbers and times.

    Where records are missing the step between two times is longer. What is missing is counted at the lower of
    its two neighbours' powers, or not at all where times and numbers do not fit each other (a damaged row, a
    machine that slept), and told apart as `gap_s`, so that an error bound can hold it.
    """
    ordered = sorted(rows, key=lambda row: row.record)
    times_s = unroll((row.time_of_day_s for row in ordered), interval_s, shift_s)
    if not ordered:
        return []
    before, before_s = ordered[0], times_s[0]
    found = [Interval(before_s - interval_s, before_s, before.power_w)]
    for row, time_s in zip(ordered[1:], times_s[1:], strict=True):
        step_s, records = time_s - before_s, row.record - before.record
        if step_s <= 0:
            continue  # a clock that was set back by less than an hour: the row's interval is not known
        own_s = step_s if records == 1 and step_s < _LONGEST_STEP * interval_s else min(interval_s, step_s)
        gap_s = step_s - own_s
        if gap_s > 0:
            low_w = tuple(min(pair) for pair in zip(before.power_w, row.power_w, strict=True))
            if step_s > (records + _LONGEST_STEP) * interval_s:
                low_w = (0.0,) * len(low_w)
            found.append(Interval(before_s, time_s - own_s, low_w, gap_s))
        found.append(Interval(time_s - own_s, time_s, row.power_w))
        before, before_s = row, time_s
    return found
