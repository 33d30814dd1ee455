"""RAPL through powercap, against a tree in a temporary folder."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy import accounting
from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.meters.rapl import UPDATE_PERIOD_S, open_rapl
from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import Provenance
from tests.doubles.powercap import PowercapTree
from tests.doubles.powercurve import LatchedCounter, PowerCurve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.doubles.powercurve import ManualScheduler

RANGE_UJ = 65_532_610_987  # of an AMD CPU: round every 234 s at 280 W


def test_a_package_has_what_its_counter_went_on_by(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    powercap.add("intel-rapl:0", "package-0", energy_uj=1_000_000)
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        scheduler.advance(1)
        powercap.set("intel-rapl:0", 251_000_000)
    (found,) = window.domains
    assert (found.domain, found.energy_j, found.provenance) == ("cpu:package-0", 250.0, Provenance.MEASURED)
    assert found.bound_j == pytest.approx(0.28)  # 1 ms at the zone's limit


def test_zones_are_named_by_their_content_and_not_their_number(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    """Numbering may have gaps, packages may have dies, and a package may be shown twice."""
    powercap.add("intel-rapl:0", "package-0-die-0")
    powercap.add("intel-rapl:0:0", "core")
    powercap.add("intel-rapl:0:2", "dram")
    powercap.add("intel-rapl:3", "package-0-die-1")
    powercap.add("intel-rapl:5", "psys")
    powercap.add("intel-rapl-mmio:0", "package-0-die-0")
    meter = open_rapl(scheduler, machine)
    assert meter.source.domains == ("cpu:package-0-die-0", "cpu:package-0-die-1", "dram:0-die-0", "psys")


def test_a_package_that_is_shown_twice_is_read_by_its_register(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    """The memory-mapped twin may stand still."""
    powercap.add("intel-rapl-mmio:0", "package-0")
    powercap.add("intel-rapl:0", "package-0")
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        powercap.set("intel-rapl:0", 7_000_000)
    assert [part.energy_j for part in window.domains] == [7.0]


def test_the_whole_machines_counter_is_not_added_to_its_parts(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    for folder, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram"), ("intel-rapl:1", "psys")):
        powercap.add(folder, name)
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        for folder, energy_uj in (("intel-rapl:0", 90), ("intel-rapl:0:0", 10), ("intel-rapl:1", 150)):
            powercap.set(folder, energy_uj * 1_000_000)
    total = accounting.cpu_energy(window.domains)
    assert total is not None
    assert total.energy_j == 100


def test_a_counter_that_wraps_inside_a_window_still_tells_what_was_used(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    powercap.add("intel-rapl:0", "package-0", energy_uj=RANGE_UJ - 1_000_000, range_uj=RANGE_UJ)
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        powercap.set("intel-rapl:0", 4_000_000 - 1)
    assert window.domains[0].energy_j == pytest.approx(5.0)


def test_a_counter_that_goes_round_five_times_in_a_window_is_counted_whole(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    """It is read in the background often enough at the highest power the zone names."""
    powercap.add("intel-rapl:0", "package-0", range_uj=RANGE_UJ, limit_w=280)
    joules = lambda: 280 * scheduler.now_s  # noqa: E731
    scheduler.on_advance = lambda now_s: powercap.set("intel-rapl:0", int(280e6 * now_s) % (RANGE_UJ + 1))
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    before_j = joules()
    with meters.window() as window:
        scheduler.advance(5.5 * 234)
    assert window.domains[0].energy_j == pytest.approx(joules() - before_j, rel=1e-9)


def test_a_pause_in_which_the_counter_may_have_gone_round_gives_no_reading(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    """A suspended machine: better none than a wrong one."""
    powercap.add("intel-rapl:0", "package-0", range_uj=RANGE_UJ, limit_w=280)
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        scheduler.now_s += 1000  # no task runs meanwhile
        powercap.set("intel-rapl:0", 5_000_000)
    assert window.domains[0].provenance is Provenance.UNAVAILABLE
    assert "gone round" in (window.domains[0].reason or "")


def test_an_unreadable_zone_makes_the_cpu_sum_unknown_and_not_smaller(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    powercap.add("intel-rapl:0", "package-0")
    (powercap.add("intel-rapl:1", "package-1") / "energy_uj").write_text("not a number")
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as window:
        powercap.set("intel-rapl:0", 1_000_000)
    total = accounting.cpu_energy(window.domains)
    assert total is not None
    assert total.energy_j is None


def test_a_read_that_fails_spoils_its_window_alone(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler
) -> None:
    zone = powercap.add("intel-rapl:0", "package-0")
    meters = Meters([open_rapl(scheduler, machine)], clock=scheduler.clock)
    with meters.window() as failed:
        (zone / "energy_uj").unlink()
    with meters.window() as good:
        pass
    powercap.set("intel-rapl:0", 0)
    with meters.window() as good:
        powercap.set("intel-rapl:0", 7_000_000)
    assert failed.domains[0].energy_j is None
    assert "energy_uj cannot be read" in (failed.domains[0].reason or "")
    assert good.domains[0].energy_j == 7.0


def test_counters_that_are_roots_alone_are_explained(
    open_folder: Path, scheduler: ManualScheduler, as_nobody: Callable[[], None]
) -> None:
    tree = PowercapTree(open_folder / "class/powercap")
    (tree.add("intel-rapl:0", "package-0") / "energy_uj").chmod(0)
    as_nobody()
    with pytest.raises(MeterUnavailableError) as caught:
        open_rapl(scheduler, Machine(sys=open_folder))
    assert caught.value.reason is Unavailable.NO_PERMISSION
    assert "sudo chmod a+r" in caught.value.remedy


def test_a_machine_without_the_interface_is_no_device(machine: Machine, scheduler: ManualScheduler) -> None:
    with pytest.raises(MeterUnavailableError) as caught:
        open_rapl(scheduler, machine)
    assert caught.value.reason is Unavailable.NO_DEVICE


@pytest.mark.parametrize("late_s", [0.0, 0.002, 0.02])
def test_windows_are_within_their_bound_also_where_the_reader_is_kept_waiting(
    powercap: PowercapTree, machine: Machine, scheduler: ManualScheduler, late_s: float
) -> None:
    """Between a reading and the block another process may run: the reading then holds more than the block."""
    source = random.Random(late_s)
    ends_s = list(accumulate(source.expovariate(5.0) for _ in range(400)))
    curve = PowerCurve([(0.0, 100.0), *((end_s, source.uniform(20, 280)) for end_s in ends_s)])
    counter = LatchedCounter(curve, UPDATE_PERIOD_S)
    powercap.add("intel-rapl:0", "package-0", limit_w=280)
    scheduler.on_advance = lambda now_s: powercap.set("intel-rapl:0", int(1e6 * counter.energy_j(now_s)))

    def clock() -> float:
        now_s = scheduler.now_s
        scheduler._set(now_s + source.random() * late_s)  # after each look at the clock
        return now_s

    scheduler.clock = clock
    meters = Meters([open_rapl(scheduler, machine)], clock=clock)
    for _ in range(50):
        scheduler.advance(source.uniform(0.01, 0.3))
        with meters.window() as window:
            scheduler.advance(source.uniform(0.01, 0.3))
        (found,) = window.domains
        start_s, end_s = window._edges_s
        truth_j = curve.energy_j(end_s) - curve.energy_j(start_s)
        assert abs(found.energy_j - truth_j) <= found.bound_j + 0.002
