"""Which meters a machine has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.errors import MeterUnavailableError, RequestError
from pytest_llmenergy.meters import open_meters
from pytest_llmenergy.records import MeterSource, Provenance

if TYPE_CHECKING:
    from pytest_llmenergy.meters.machine import Machine
    from pytest_llmenergy.meters.window import Meters
    from tests.doubles.nvml import NvmlDouble
    from tests.doubles.powercap import PowercapTree

NO_DRIVER = "gpu A\npower 0 0 9\nerror nvmlInitWithFlags -1 9 -1e9 1e9"


@pytest.fixture
def no_gpu(nvml: NvmlDouble) -> None:
    nvml.load(NO_DRIVER)


def used(meters: Meters) -> list[str]:
    return [source.name for source in meters.sources if source.available]


def source(meters: Meters, name: str) -> MeterSource:
    return next(source for source in meters.sources if source.name == name)


@pytest.mark.usefixtures("no_gpu")
def test_auto_measures_the_cpu_where_that_can_be_done(machine: Machine, powercap: PowercapTree) -> None:
    powercap.add("intel-rapl:0", "package-0")
    with open_meters(machine=machine) as meters:
        assert used(meters) == ["rapl"]
        assert source(meters, "nvml").remedy == "Load the NVIDIA driver: sudo modprobe nvidia"


@pytest.mark.usefixtures("no_gpu")
def test_auto_estimates_where_nothing_measures_and_says_what_is_missing(machine: Machine) -> None:
    with open_meters(machine=machine) as meters:
        assert used(meters) == ["estimate"]
        assert "modprobe intel_rapl_msr" in (source(meters, "rapl").remedy or "")


def test_auto_takes_the_gpus_and_the_cpu(nvml: NvmlDouble, machine: Machine, powercap: PowercapTree) -> None:
    nvml.load("gpu A\npower 0 0 100")
    powercap.add("intel-rapl:0", "package-0")
    with open_meters(machine=machine, self_check_s=0) as meters:
        assert used(meters) == ["nvml", "rapl"]


@pytest.mark.usefixtures("no_gpu")
def test_a_meter_that_was_asked_for_and_is_not_there_is_an_error(machine: Machine) -> None:
    with pytest.raises(MeterUnavailableError, match="RAPL"):
        open_meters(["rapl"], machine=machine)


@pytest.mark.usefixtures("no_gpu")
def test_where_measuring_is_required_an_estimate_is_an_error_with_every_remedy(machine: Machine) -> None:
    with pytest.raises(RequestError, match=r"(?s)amd_energy.*modprobe.*rapl.*modprobe"):
        open_meters(machine=machine, require_measured=True)
    with pytest.raises(RequestError, match="estimate"):
        open_meters(["estimate"], machine=machine, require_measured=True)


def test_an_unknown_meter_is_refused_with_the_names_there_are(machine: Machine) -> None:
    with pytest.raises(RequestError, match=r"'wattmeter'.*nvml, rapl, uprof"):
        open_meters(["nvml", "wattmeter"], machine=machine)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("names", "energy_j"), [(["rapl", "amd_energy"], 7), (["amd_energy", "rapl"], 9)])
def test_a_domain_of_two_meters_is_counted_once(
    machine: Machine, powercap: PowercapTree, names: list[str], energy_j: float
) -> None:
    """The meter that was named first has it."""
    powercap.add("intel-rapl:0", "package-0")
    monitor = machine.hwmon / "hwmon0"
    monitor.mkdir(parents=True)
    for name, content in (("name", "amd_energy"), ("energy1_label", "Esocket0"), ("energy1_input", "0")):
        (monitor / name).write_text(f"{content}\n")
    with open_meters(names, machine=machine) as meters:
        with meters.window() as window:
            powercap.set("intel-rapl:0", 7_000_000)
            (monitor / "energy1_input").write_text("9000000\n")
        assert [(part.domain, part.energy_j) for part in window.domains] == [("cpu:package-0", energy_j)]


@pytest.mark.usefixtures("no_gpu")
def test_an_estimate_beside_a_measurement_stays_apart(machine: Machine, powercap: PowercapTree) -> None:
    powercap.add("intel-rapl:0", "package-0")
    with open_meters(["rapl", "estimate"], machine=machine) as meters, meters.window() as window:
        pass
    assert [part.domain for part in window.domains] == ["cpu:package-0", "cpu:attributed"]
    assert [part.provenance for part in window.domains] == [Provenance.MEASURED, Provenance.ESTIMATED]
