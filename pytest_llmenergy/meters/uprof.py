"""AMD uProf: power of every physical core and package, and the share of it that is ours.

One recorder runs for the whole session: starting one takes seconds, and its first and last rows are lost.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmenergy.accounting import ATTRIBUTED
from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters.counters import measured, unavailable
from pytest_llmenergy.meters.machine import tree_busy_s
from pytest_llmenergy.meters.residency import ResidencySampler
from pytest_llmenergy.meters.uprof_csv import Interval
from pytest_llmenergy.meters.uprof_energy import TIME_DOUBT_S, attributed, energy_of_intervals, share_doubt_j
from pytest_llmenergy.meters.uprof_recorder import (
    COMMAND,
    INTERVAL_MS,
    NAME,
    Recorder,
    explained,
    find_command,
)
from pytest_llmenergy.meters.uprof_rows import Rows
from pytest_llmenergy.records import MeterSource, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmenergy.meters import Domains
    from pytest_llmenergy.meters.machine import Machine
    from pytest_llmenergy.meters.sampler import Scheduler

_INTERVAL_S = INTERVAL_MS / 1000
_START_S = 20.0  # how long its file is waited for
_FIRST_ROWS_S = 60.0  # and then the first rows: they come in blocks
_ROWS_S = 5.0  # how long a window's rows are waited for at least
_BLOCKS = 3  # and so many of the blocks they come in
_KEEP_S = 7200.0  # of a window whose energy nobody asks for
_MOST_MISSING = 0.05  # of a window; beyond it there is no reading
_MOST_CLOCK_SET_S = 0.1  # the system's clock was set by more: its times tell nothing any more


class UprofMeter:
    """Package power and the attributed power of the cores, from the recorder's rows."""

    def __init__(self, recorder: Recorder, scheduler: Scheduler, machine: Machine, folder: Path) -> None:
        self._recorder = recorder
        self._scheduler = scheduler
        self._folder = folder
        self._rows = Rows(recorder.csv, scheduler.clock)
        self._lock = threading.Lock()  # a trace reads in another thread
        self._open: list[float] = []
        self._proc = machine.proc
        self._residency = ResidencySampler(machine, _INTERVAL_S)
        scheduler.add(self._residency.sample)

    @property
    def source(self) -> MeterSource:
        """Packages and, where there are cores, the attributed ones."""
        return MeterSource(
            name=NAME,
            available=True,
            domains=(*self._rows.packages, *([ATTRIBUTED] if self._rows.cores else [])),
            provenance=Provenance.MEASURED,
            details={
                "version": self._rows.version,
                "update_period_s": self._rows.interval_s,
                "cores": len(self._rows.cores),
                "rows_come_every_s": self._rows.block_s,
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
        began_s = time.monotonic()
        waited_s = 0.0
        while self._recorder.is_running and not self._rows.newest_s:
            waited_s = time.monotonic() - began_s
            if waited_s > (_FIRST_ROWS_S if self._rows.has_header else _START_S):
                break
            time.sleep(_INTERVAL_S / 2)
            self._read()
        if not self._recorder.is_running:
            raise explained(self._recorder.said())
        if not self._rows.newest_s:
            what = "a header but no records" if self._rows.has_header else "no records"
            raise MeterUnavailableError(
                NAME,
                Unavailable.READ_FAILED,
                f"{COMMAND} wrote {what} in {waited_s:.0f} s.",
                f"Try: {COMMAND} timechart --event power --interval 100 --duration 5",
            )

    def _read(self) -> tuple[float, ...]:
        """Take what has been written since, and forget what no window needs; the last row's powers."""
        with self._lock:
            self._rows.read()
            now_s = self._scheduler.clock()
            self._rows.forget(max(min(self._open, default=now_s), now_s - _KEEP_S) - 20 * _INTERVAL_S)
            return self._rows.last_power_w

    def power_w(self) -> dict[str, float]:
        """Mean power of each package over the last row that has come."""
        last_w = self._read()
        return {domain: last_w[column] for domain, column in self._rows.packages.items() if last_w}

    def begin(self) -> float:
        """Keep the rows from now on: they come later."""
        now_s = self._scheduler.clock()
        self._open.append(now_s)
        self._residency.sample(now_s)
        return now_s

    def end(self, mark: float) -> Callable[[float, float], Domains]:
        """The rows of the window are read when the energy is asked for."""
        self._residency.sample(self._scheduler.clock())

        def between(start_s: float, end_s: float) -> Domains:
            try:
                return self._between(start_s, end_s)
            finally:
                self._open.remove(mark)

        return between

    def _between(self, start_s: float, end_s: float) -> Domains:
        asked_s = time.monotonic()
        wait_s = _ROWS_S
        while True:
            self._read()
            with self._lock:
                found = self._rows.intervals()
            wait_s = max(_ROWS_S, _BLOCKS * self._rows.block_s)
            # Two rows beyond the window tell what the last one cost after its end.
            if found and found[-1].end_s >= end_s + 2 * self._rows.interval_s:
                break
            if time.monotonic() > asked_s + wait_s or not self._recorder.is_running:
                break
            time.sleep(_INTERVAL_S / 4)
        near = [
            step for step in found if step.end_s > start_s - 20 * _INTERVAL_S and step.start_s < end_s + 1.0
        ]
        problem = self._problem(near, start_s, end_s, wait_s)
        if problem is not None:
            return tuple(unavailable(domain, problem, NAME) for domain in self.source.domains)
        series = {
            domain: [Interval(step.start_s, step.end_s, (step.power_w[column],), step.gap_s) for step in near]
            for domain, column in self._rows.packages.items()
        }
        records = [
            record
            for record in tuple(self._residency.records)
            if record.end_s > near[0].start_s and record.start_s < near[-1].end_s
        ]
        cores = self._rows.cores
        if cores:
            series[ATTRIBUTED] = attributed(near, records, cores)
        doubt_s = abs(self._rows.clock_set_s())
        energies = {
            domain: energy_of_intervals(steps, start_s, end_s, TIME_DOUBT_S + doubt_s)
            for domain, steps in series.items()
        }
        share_j = share_doubt_j(near, records, cores)
        return tuple(
            measured(domain, found.energy_j, found.bound_j + (share_j if domain == ATTRIBUTED else 0.0), NAME)
            for domain, found in energies.items()
        )

    def _problem(self, near: Sequence[Interval], start_s: float, end_s: float, waited_s: float) -> str | None:
        set_s = self._rows.clock_set_s()
        if abs(set_s) > _MOST_CLOCK_SET_S:
            return (
                f"the system's clock, which {COMMAND} goes by, was set by {set_s:+.1f} s during the session"
            )
        if not near:
            return f"{COMMAND} has written no rows" + (
                "" if self._recorder.is_running else f": it has ended ({self._recorder.process.returncode})"
            )
        if near[0].start_s > start_s:
            return "the recording began after the window"
        if near[-1].end_s < end_s:
            return f"the rows of the window's end did not come within {waited_s:.0f} s"
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
            "Install AMD uProf (amd.com/en/developer/uprof.html), its bin folder on PATH.",
        )
    folder = Path(tempfile.mkdtemp(prefix="llmenergy-uprof-"))
    meter = UprofMeter(Recorder(command, folder), scheduler, machine, folder)
    try:
        meter.wait_for_rows()
    except BaseException:
        meter.close()
        raise
    return meter
