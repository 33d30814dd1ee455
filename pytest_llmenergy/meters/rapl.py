"""RAPL counters through the kernel's powercap interface, of Intel and AMD CPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy import units
from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters.counters import CounterMeter, FileCounter
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.records import MeterSource, Provenance

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.meters.sampler import Scheduler

NAME = "rapl"
UPDATE_PERIOD_S = 0.001  # Intel SDM volume 3B, 16.10.1; AMD's is the same
# Where the zone names no limit: above any package sold so far.
DEFAULT_POWER_CAP_W = 600.0


@dataclass(frozen=True, slots=True)
class Zone:
    """One folder of powercap."""

    domain: str
    path: Path


def domain_of(name: str, parent: str | None) -> str | None:
    """Our name of a zone; None of one that lies inside another (core, uncore)."""
    package = re.fullmatch(r"package-(\d+(?:-die-\d+)?)", name)
    if package:
        return f"cpu:package-{package[1]}"
    if name == "dram":
        above = re.fullmatch(r"package-(\d+(?:-die-\d+)?)", parent or "")
        return f"dram:{above[1] if above else 0}"
    return "psys" if name == "psys" else None


def zones(powercap: Path) -> list[Zone]:
    """The zones that are a domain of ours, each once.

    Some machines show one package twice, by MSR and by MMIO: the first of a name is taken.
    """
    names = {
        path.name: (path / "name").read_text(encoding="ascii").strip()
        for path in powercap.glob("*rapl*:*")
        if (path / "name").is_file()
    }
    found: dict[str, Zone] = {}
    for folder in sorted(names, key=lambda name: ("mmio" in name, name)):
        parent = names.get(folder.rpartition(":")[0])
        domain = domain_of(names[folder], parent)
        if domain is not None:
            found.setdefault(domain, Zone(domain, powercap / folder))
    return sorted(found.values(), key=lambda zone: zone.domain)


def power_cap_w(zone: Path) -> float:
    """The highest limit the zone names, or one that no package reaches."""
    limits = []
    for path in zone.glob("constraint_*_*"):
        if path.name.endswith(("_power_limit_uw", "_max_power_uw")):
            try:
                limits.append(units.joules_from_microjoules(float(path.read_text(encoding="ascii"))))
            except (OSError, ValueError):
                continue
    return max((limit for limit in limits if limit > 0), default=DEFAULT_POWER_CAP_W)


def open_rapl(sampler: Scheduler, machine: Machine | None = None) -> CounterMeter:
    """Open the powercap counters.

    Raises:
        MeterUnavailableError: there are none, or none can be read.
    """
    powercap = (machine or Machine.here()).powercap
    found = zones(powercap) if powercap.is_dir() else []
    if not found:
        raise MeterUnavailableError(
            NAME,
            Unavailable.NO_DEVICE,
            f"{powercap} has no RAPL zone.",
            "A virtual machine has none. On a physical one, run: sudo modprobe intel_rapl_msr",
        )
    counters, broken = [], {}
    for zone in found:
        try:
            modulus = int((zone.path / "max_energy_range_uj").read_text(encoding="ascii")) + 1
            counter = FileCounter(
                zone.domain,
                zone.path / "energy_uj",
                modulus=modulus,
                power_cap_w=power_cap_w(zone.path),
                update_period_s=UPDATE_PERIOD_S,
            )
        except (OSError, ValueError) as error:
            broken[zone.domain] = f"{zone.path} cannot be read ({error})"
            continue
        if counter.read(sampler.clock).problem:
            broken[zone.domain] = counter.problem or ""
        else:
            counters.append(counter)
    if not counters:
        path = next(iter(broken.values()))
        denied = "ermission" in path
        raise MeterUnavailableError(
            NAME,
            Unavailable.NO_PERMISSION if denied else Unavailable.READ_FAILED,
            f"{path}.",
            f"They are root's (CVE-2020-8694). Run: sudo chmod a+r {powercap}/*/energy_uj" if denied else "",
        )
    source = MeterSource(
        name=NAME,
        available=True,
        domains=tuple(zone.domain for zone in found),
        provenance=Provenance.MEASURED,
        reason="; ".join(broken.values()) or None,
        details={"update_period_s": UPDATE_PERIOD_S},
    )
    return CounterMeter(source, counters, sampler, broken)
