"""AMD uProf: power of every physical core and package, and the share of it that is ours.

One recorder runs for the whole session: starting one takes seconds, and its first and last rows are lost.
"""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmenergy.accounting import ATTRIBUTED
from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters.counters import measured, unavailable
from pytest_llmenergy.meters.edges import Edge, Tick, energy_between
from pytest_llmenergy.meters.integrate import Bounded
from pytest_llmenergy.meters.machine import TICK_S, tree_busy_s
from pytest_llmenergy.meters.residency import ResidencySampler
from pytest_llmenergy.meters.uprof_csv import Interval, Timechart
from pytest_llmenergy.meters.uprof_recorder import (
    COMMAND,
    INTERVAL_MS,
    NAME,
    Recorder,
    explained,
    find_command,
)
from pytest_llmenergy.records import MeterSource, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_llmenergy.meters import Domains
    from pytest_llmenergy.meters.machine import Machine
    from pytest_llmenergy.meters.residency import Residency
    from pytest_llmenergy.meters.sampler import Scheduler

_INTERVAL_S = INTERVAL_MS / 1000
_START_S = 20.0
_ROWS_S = 5.0  # how long a window's rows are waited for
_TIME_DOUBT_S = 0.002  # the times of real rows are off by so much
_MOST_MISSING = 0.05  # of a window; beyond it there is no reading


class UprofMeter:
    """Package power and the attributed power of the cores, from the recorder's rows."""

    def __init__(self, recorder: Recorder, scheduler: Scheduler, machine: Machine, folder: Path) -> None:
        self._recorder = recorder
        self._scheduler = scheduler
        self._folder = folder
        self._chart = Timechart()
        self._offset_s: float | None = None  # from the chart's local time to our clock
        self._read_so_far = 0
        self._first_record_s: float | None = None
        self._proc = machine.proc
        self._residency = ResidencySampler(machine, _INTERVAL_S)
        scheduler.add(self._residency.sample)

    @property
    def source(self) -> MeterSource:
        """Packages and the attributed cores."""
        packages = tuple(f"cpu:package-{number}" for kind, number in self._chart.domains if kind == "package")
        return MeterSource(
            name=NAME,
            available=True,
            domains=(*packages, ATTRIBUTED),
            provenance=Provenance.MEASURED,
            details={
                "version": self._chart.version,
                "update_period_s": self._chart.interval_s,
                "cores": sum(kind == "core" for kind, _ in self._chart.domains),
            },
        )

    @property
    def cpu_s(self) -> float:
        """CPU time of the recorder, in ticks of 10 ms."""
        return tree_busy_s(self._proc, self._recorder.process.pid) or 0.0

    def wait_for_rows(self) -> None:
        """Wait for the recording to begin.

        Raises:
            MeterUnavailableError: the CLI ended, or wrote nothing.
        """
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and self._recorder.is_running and not self._chart.rows:
            time.sleep(_INTERVAL_S / 2)
            self.read()
        if not self._recorder.is_running:
            raise explained(self._recorder.said())
        if not self._chart.rows:
            what = "a header but no records" if self._chart.has_header else "no records"
            raise MeterUnavailableError(
                NAME,
                Unavailable.READ_FAILED,
                f"{COMMAND} wrote {what} in {_START_S:.0f} s.",
                f"Try: {COMMAND} timechart --event power --interval 100 --duration 5",
            )

    def read(self) -> None:
        """Take what has been written since."""
        path = self._recorder.csv()
        if path is None:
            return
        with path.open("rb") as file:
            file.seek(self._read_so_far)
            content = file.read()
        self._read_so_far += len(content)
        self._chart.feed(content.decode("utf-8", errors="replace"))
        if self._offset_s is None and self._chart.started is not None:
            midnight = dt.datetime.combine(self._chart.started.date(), dt.time())
            now = dt.datetime.now()  # noqa: DTZ005 - the chart's times are local
            self._offset_s = self._scheduler.clock() - (now - midnight).total_seconds()

    def power_w(self) -> dict[str, float]:
        """Mean power of each package over the last row that has come."""
        self.read()
        if not self._chart.rows:
            return {}
        last = self._chart.rows[max(self._chart.rows)]
        return {
            f"cpu:package-{number}": power_w
            for (kind, number), power_w in zip(self._chart.domains, last.power_w, strict=True)
            if kind == "package"
        }

    def begin(self) -> None:
        """Only the times count: the rows come later."""
        self._residency.sample(self._scheduler.clock())

    def end(self, _: None) -> Callable[[float, float], Domains]:
        """The rows of the window are read when the energy is asked for."""
        self._residency.sample(self._scheduler.clock())
        return self._between

    def _between(self, start_s: float, end_s: float) -> Domains:
        until_s = time.monotonic() + _ROWS_S
        while True:
            self.read()
            found = self._intervals()
            # Two rows beyond the window tell what the last one cost after its end.
            if found and found[-1].end_s >= end_s + 2 * self._chart.interval_s:
                break
            if time.monotonic() > until_s or not self._recorder.is_running:
                break
            time.sleep(_INTERVAL_S / 4)
        near = [
            step for step in found if step.end_s > start_s - 20 * _INTERVAL_S and step.start_s < end_s + 1.0
        ]
        problem = self._problem(near, start_s, end_s)
        if problem is not None:
            return tuple(unavailable(domain, problem, NAME) for domain in self.source.domains)
        cores = {
            number: column for column, (kind, number) in enumerate(self._chart.domains) if kind == "core"
        }
        series = {
            f"cpu:package-{number}": [
                Interval(step.start_s, step.end_s, (step.power_w[column],), step.gap_s) for step in near
            ]
            for column, (kind, number) in enumerate(self._chart.domains)
            if kind == "package"
        }
        records = [
            record
            for record in tuple(self._residency.records)
            if record.end_s > near[0].start_s and record.start_s < near[-1].end_s
        ]
        if cores:
            series[ATTRIBUTED] = attributed(near, records, cores)
        energies = {domain: energy_of_intervals(steps, start_s, end_s) for domain, steps in series.items()}
        share_j = share_doubt_j(near, records, cores)
        return tuple(
            measured(domain, found.energy_j, found.bound_j + (share_j if domain == ATTRIBUTED else 0.0), NAME)
            for domain, found in energies.items()
        )

    def _intervals(self) -> list[Interval]:
        offset_s = self._offset_s or 0.0
        return [
            Interval(step.start_s + offset_s, step.end_s + offset_s, step.power_w, step.gap_s)
            for step in self._chart.intervals()
        ]

    def _problem(self, near: Sequence[Interval], start_s: float, end_s: float) -> str | None:
        if not self._chart.has_header or not near:
            return f"{COMMAND} has written no rows" + (
                "" if self._recorder.is_running else f": it has ended ({self._recorder.process.returncode})"
            )
        if near[0].start_s > start_s:
            return "the recording began after the window"
        if near[-1].end_s < end_s:
            return f"the rows of the window's end did not come within {_ROWS_S:.0f} s"
        missing_s = sum(
            max(0.0, min(step.end_s, end_s) - max(step.start_s, start_s)) for step in near if step.gap_s > 0
        )
        if missing_s > _MOST_MISSING * (end_s - start_s):
            return f"{missing_s:.1f} s of the window's {end_s - start_s:.1f} s are missing in the record"
        return None

    def close(self) -> None:
        """Stop the recorder and remove its files."""
        self._recorder.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def attributed(
    steps: Iterable[Interval], records: Sequence[Residency], column_of_core: dict[int, int]
) -> list[Interval]:
    """Power of the cores we were on, times our share of them, over each interval."""
    found = []
    first = 0
    for step in steps:
        power_w = 0.0
        while first < len(records) and records[first].end_s <= step.start_s:
            first += 1
        for record in records[first:]:
            overlap_s = min(step.end_s, record.end_s) - max(step.start_s, record.start_s)
            if record.start_s >= step.end_s:
                break
            weight = overlap_s / (step.end_s - step.start_s)
            power_w += weight * sum(
                step.power_w[column_of_core[core]] * share
                for core, share in record.shares.items()
                if core in column_of_core
            )
        found.append(Interval(step.start_s, step.end_s, (power_w,), step.gap_s))
    return found


def share_doubt_j(
    steps: Sequence[Interval], records: Sequence[Residency], column_of_core: dict[int, int]
) -> float:
    """What our shares may be off by: CPU time is counted in ticks, one at each end of a window and core."""
    cores = {core for record in records for core in record.shares if core in column_of_core}
    highest_w = (max(step.power_w[column_of_core[core]] for step in steps) for core in cores)
    return 2 * TICK_S * sum(highest_w)


def energy_of_intervals(steps: Sequence[Interval], start_s: float, end_s: float) -> Bounded:
    """Energy of mean powers over intervals between two times inside them: the intervals' ends are ticks."""
    energies = accumulate((step.power_w[0] * (step.end_s - step.start_s) for step in steps), initial=0.0)
    times_s = (steps[0].start_s, *(step.end_s for step in steps))
    ticks = [Tick(at_s, _TIME_DOUBT_S, energy_j) for at_s, energy_j in zip(times_s, energies, strict=True)]

    def edge(time_s: float) -> Edge:
        before = [tick for tick in ticks if tick.time_s <= time_s]
        made = Edge(time_s, before[-1].energy_j, before)
        for tick in ticks[len(before) :]:
            made.see(tick)
        return made

    period_s = (times_s[-1] - times_s[0]) / len(steps)
    found = energy_between(edge(start_s), edge(end_s), period_s=period_s, cap_w=float("inf"))
    gaps_j = sum(
        step.gap_s * max(other.power_w[0] for other in steps)
        for step in steps
        if step.gap_s > 0 and step.end_s > start_s and step.start_s < end_s
    )
    if found is None:  # no power after the window at all: nothing was spent, or the rows end with it
        inside = [step for step in steps if step.end_s > start_s and step.start_s < end_s]
        energy_j = sum(
            step.power_w[0] * (min(step.end_s, end_s) - max(step.start_s, start_s)) for step in inside
        )
        cut_j = sum(step.power_w[0] * (step.end_s - step.start_s) for step in (inside[0], inside[-1]))
        return Bounded(energy_j, cut_j + gaps_j)
    return Bounded(found.energy_j, found.bound_j + gaps_j)


def open_uprof(scheduler: Scheduler, machine: Machine) -> UprofMeter:
    """Start the recorder and wait for its first rows (about 3 s).

    Raises:
        MeterUnavailableError: the CLI is not there, lacks its driver or a permission, or records nothing.
    """
    command = find_command()
    if command is None:
        raise MeterUnavailableError(
            NAME,
            Unavailable.NOT_INSTALLED,
            f"{COMMAND} is neither on PATH nor under /opt.",
            "Install AMD uProf (amd.com/en/developer/uprof.html) and add its bin folder to PATH.",
        )
    folder = Path(tempfile.mkdtemp(prefix="llmenergy-uprof-"))
    meter = UprofMeter(Recorder(command, folder), scheduler, machine, folder)
    try:
        meter.wait_for_rows()
    except BaseException:
        meter.close()
        raise
    return meter
