"""Doubles at the outermost boundary: the driver's library, sysfs trees, the CLI's executable."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.meters.machine import Machine
from tests.doubles.nvml import NvmlDouble
from tests.doubles.powercap import PowercapTree
from tests.doubles.powercurve import ManualScheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> NvmlDouble:
    return NvmlDouble(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_library: NvmlDouble, monkeypatch: pytest.MonkeyPatch) -> NvmlDouble:
    """The driver's double; all GPUs visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return nvml_library


@pytest.fixture
def scheduler(nvml_library: NvmlDouble) -> ManualScheduler:
    """Time that moves when told to, also the driver double's."""
    return ManualScheduler(on_advance=nvml_library.set_clock)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine whose sysfs is empty and whose procfs is the real one."""
    return Machine(sys=tmp_path / "sys")


@pytest.fixture
def powercap(machine: Machine) -> PowercapTree:
    """An empty powercap tree in that machine's sysfs."""
    return PowercapTree(machine.powercap)


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """A call that makes us a user whom the kernel denies what is root's, until the test ends."""

    def become() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)

    yield become
    os.seteuid(os.getuid())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may look into (tmp_path is ours alone)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def uprof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Puts a fake AMDuProfCLI on PATH: call it with the scenario, times from now; it gives now."""
    command = tmp_path / "bin" / "AMDuProfCLI"
    command.parent.mkdir()
    script = Path(__file__).parents[1] / "doubles" / "fake_amduprofcli.py"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{script}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")

    def arrange(
        packages: list[list[tuple[float, float]]], cores: list[list[tuple[float, float]]], **more: object
    ) -> float:
        now_s = time.monotonic()
        shift = lambda curves: [[(now_s + at_s, power_w) for at_s, power_w in curve] for curve in curves]  # noqa: E731
        scenario = {"packages": shift(packages), "cores": shift(cores), **more}
        monkeypatch.setenv("FAKE_UPROF", json.dumps(scenario))
        return now_s

    return arrange
