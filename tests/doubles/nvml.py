"""The NVML double: a C library with the driver's SONAME, compiled when the tests run.

A scenario is a text, one directive a line; times are in s of the double's clock:

    clock manual | real            driver VERSION            epoch CLOCK_MONOTONIC_S
    gpu NAME [uuid= arch= latch_ms= phase_ms= averaging_ms= first_mj= limit_w= counter=0|1 mig=0|1]
    power GPU FROM_S W             ramp GPU FROM_S UNTIL_S TO_W
    error SYMBOL GPU|-1 CODE FROM_S UNTIL_S
    reset GPU AT_S                 frozen GPU FROM_S         scale GPU FACTOR
    pollloss GPU LOSS_S            (each read loses the energy of so long a time)
    process GPU PID                migdevice GPU UUID        throttle GPU FROM_S UNTIL_S HEXMASK
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SONAME = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("nvml_double.c")
SCENARIO_VARIABLE = "NVML_DOUBLE_SCENARIO"


def library() -> Path:
    """The compiled double, made once a version of its source; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the NVML double cannot be built")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"llmenergy-nvml-double-{os.getuid()}-{digest}"
    made = folder / SONAME
    if not made.exists():
        folder.mkdir(exist_ok=True)
        partial = folder / f"{os.getpid()}.so"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            f"-Wl,-soname,{SONAME}",
            "-o",
            partial,
            SOURCE,
        ]
        subprocess.run([*command, "-lm", "-lpthread"], check=True, capture_output=True)
        partial.replace(made)
    return made


class NvmlDouble:
    """The library in this process. Its first load makes the driver bindings use it from then on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._library = ctypes.CDLL(str(library()))
        self._library.double_energy_j.restype = ctypes.c_double
        self._library.double_energy_j.argtypes = [ctypes.c_int, ctypes.c_double]
        self._library.double_now.restype = ctypes.c_double
        self._library.double_set.argtypes = [ctypes.c_double]
        self._library.double_calls.restype = ctypes.c_long

    def load(self, scenario: str) -> Path:
        """Take a scenario; the file it stands in, for other processes."""
        self._count += 1
        path = self._folder / f"scenario-{self._count}"
        path.write_text(scenario)
        assert self._library.double_load(str(path).encode()) == scenario.count("gpu "), scenario
        return path

    def energy_j(self, gpu: int, from_s: float, until_s: float) -> float:
        """The truth."""
        return self._library.double_energy_j(gpu, until_s) - self._library.double_energy_j(gpu, from_s)

    def set_clock(self, now_s: float) -> None:
        self._library.double_set(now_s)

    def now_s(self) -> float:
        return self._library.double_now()

    def calls(self, symbol: str) -> int:
        return self._library.double_calls(symbol.encode())

    @property
    def environment(self) -> dict[str, str]:
        """What makes another process use the library."""
        return {"LD_LIBRARY_PATH": str(library().parent)}
