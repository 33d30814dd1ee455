"""The amd_energy hardware monitor: energy of AMD sockets (kernels 5.8 to 5.12, then out of tree)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters.counters import CounterMeter, FileCounter
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.meters.rapl import DEFAULT_POWER_CAP_W, UPDATE_PERIOD_S
from pytest_llmenergy.records import MeterSource, Provenance

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.meters.sampler import Scheduler

NAME = "amd_energy"
_MODULUS = 2**64


def _socket_inputs(hwmon: Path) -> dict[str, Path]:
    found = {}
    for monitor in hwmon.glob("hwmon*"):
        name = monitor / "name"
        if not name.is_file() or name.read_text(encoding="ascii").strip() != NAME:
            continue
        for label in monitor.glob("energy*_label"):
            match = re.fullmatch(r"Esocket(\d+)", label.read_text(encoding="ascii").strip())
            if match:
                path = label.with_name(label.name.replace("_label", "_input"))
                found[f"cpu:package-{int(match[1])}"] = path
    return dict(sorted(found.items()))


def open_amd_energy(sampler: Scheduler, machine: Machine | None = None) -> CounterMeter:
    """Open the socket counters.

    Raises:
        MeterUnavailableError: there is no such monitor, or it cannot be read.
    """
    hwmon = (machine or Machine.here()).hwmon
    inputs = _socket_inputs(hwmon)
    if not inputs:
        raise MeterUnavailableError(
            NAME,
            Unavailable.NO_DEVICE,
            f"{hwmon} has no monitor of that name.",
            "On an AMD EPYC, build and load github.com/amd/amd_energy, then run: sudo modprobe amd_energy",
        )
    counters = [
        FileCounter(
            domain,
            path,
            modulus=_MODULUS,
            power_cap_w=DEFAULT_POWER_CAP_W,
            update_period_s=UPDATE_PERIOD_S,
        )
        for domain, path in inputs.items()
    ]
    for counter in counters:
        problem = counter.read(sampler.clock).problem
        if problem:
            raise MeterUnavailableError(
                NAME,
                Unavailable.NO_PERMISSION if "ermission" in problem else Unavailable.READ_FAILED,
                f"{problem}.",
                f"Run: sudo chmod a+r {counter.path.parent}/energy*_input",
            )
    source = MeterSource(
        name=NAME,
        available=True,
        domains=tuple(inputs),
        provenance=Provenance.MEASURED,
        details={"update_period_s": UPDATE_PERIOD_S},
    )
    return CounterMeter(source, counters, sampler, {})
