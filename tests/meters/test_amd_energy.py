"""The amd_energy hardware monitor, against a tree in a temporary folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.errors import MeterUnavailableError
from pytest_llmenergy.meters.amd_energy import open_amd_energy
from pytest_llmenergy.meters.window import Meters

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmenergy.meters.machine import Machine
    from tests.doubles.powercurve import ManualScheduler


def monitor(machine: Machine, name: str = "amd_energy") -> Path:
    folder = machine.hwmon / "hwmon3"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for number, label in enumerate(("Ecore000", "Ecore001", "Esocket0", "Esocket1"), start=1):
        (folder / f"energy{number}_label").write_text(f"{label}\n")
        (folder / f"energy{number}_input").write_text("5000000\n")
    return folder


def test_sockets_are_packages(machine: Machine, scheduler: ManualScheduler) -> None:
    folder = monitor(machine)
    meters = Meters([open_amd_energy(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        (folder / "energy3_input").write_text("25000000\n")
        (folder / "energy4_input").write_text("6000000\n")
    assert {part.domain: part.energy_j for part in window.domains} == {
        "cpu:package-0": 20,
        "cpu:package-1": 1,
    }


def test_its_counters_do_not_wrap_at_32_bits(machine: Machine, scheduler: ManualScheduler) -> None:
    folder = monitor(machine)
    (folder / "energy3_input").write_text(f"{2**32 - 1_000_000}\n")
    meters = Meters([open_amd_energy(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        (folder / "energy3_input").write_text(f"{2**32 + 2**33}\n")
    assert window.domains[0].energy_j == pytest.approx(1.0 + 2**33 / 1e6)


def test_another_monitor_is_not_taken_for_it(machine: Machine, scheduler: ManualScheduler) -> None:
    monitor(machine, name="k10temp")
    with pytest.raises(MeterUnavailableError, match="no monitor of that name"):
        open_amd_energy(scheduler, machine)
