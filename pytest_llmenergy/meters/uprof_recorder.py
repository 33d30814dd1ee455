"""The process that records: one `AMDuProfCLI timechart`, started and stopped so that no row is lost.

It records for as long as a program runs that we give it: a reader of a pipe that we hold.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from pytest_llmenergy.errors import MeterUnavailableError, Unavailable

NAME = "uprof"
COMMAND = "AMDuProfCLI"
INTERVAL_MS = 100  # as Wilkins et al., section 3.2.2
LONGEST_S = 2_000_000  # it ends with our program, not with its duration; in ms still below 2**31
STOP_S = 10.0


class Recorder:
    """The running `AMDuProfCLI timechart`."""

    def __init__(self, command: Path, folder: Path) -> None:
        self._folder = folder
        self._log = (folder / "log").open("w+b")
        pipe = folder / "until-closed"
        os.mkfifo(pipe)
        # Read and write, so that opening does not wait for the reader. If we are killed the kernel closes it.
        self._pipe: int | None = os.open(pipe, os.O_RDWR)
        arguments = ["timechart", "--event", "power", "--interval", str(INTERVAL_MS)]
        arguments += ["--duration", str(LONGEST_S), "-o", str(folder), "-f", "csv"]
        self.process = subprocess.Popen(
            [command, *arguments, shutil.which("cat") or "/bin/cat", str(pipe)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we then stop it so that no row is lost
        )

    @property
    def is_running(self) -> bool:
        """Whether it still records."""
        return self.process.poll() is None

    def said(self) -> str:
        """What it has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()

    def csv(self) -> Path | None:
        """The file it writes, once there is one."""
        return next(iter(self._folder.glob("*/timechart.csv")), None)

    def stop(self) -> None:
        """End our program, which ends the recording; then ask, then kill."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        for sent in (None, signal.SIGINT, signal.SIGKILL):
            if sent is not None:
                self.process.send_signal(sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
                break
        self._log.close()


def find_command() -> Path | None:
    """The CLI on PATH, or where its packages put it."""
    on_path = shutil.which(COMMAND)
    if on_path:
        return Path(on_path)
    return max(Path("/opt").glob(f"AMDuProf*/bin/{COMMAND}"), default=None)


def explained(said: str) -> MeterUnavailableError:
    """What the CLI said, as an error with the command that would help."""
    last = said.splitlines()[-1].strip() if said else "it ended without a word"
    lowered = said.lower()
    if "driver" in lowered:
        return MeterUnavailableError(
            NAME,
            Unavailable.NOT_INSTALLED,
            f"{COMMAND} says: {last}",
            "Run: sudo /opt/AMDuProf_*/bin/AMDPowerProfilerDriver.sh install",
        )
    if "permission" in lowered or "privilege" in lowered or "root" in lowered:
        return MeterUnavailableError(
            NAME,
            Unavailable.NO_PERMISSION,
            f"{COMMAND} says: {last}",
            "Run as root, or let an administrator allow this user to read /dev/AMDPowerProfiler.",
        )
    return MeterUnavailableError(
        NAME,
        Unavailable.READ_FAILED,
        f"{COMMAND} says: {last}",
        f"Try: {COMMAND} timechart --event power --interval 100 --duration 5",
    )
