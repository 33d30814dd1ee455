"""What may have disturbed a window."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.meters.interference import CpuLoad, CpuWatch, GpuWatch, outside_load
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.meters.nvml import open_nvml
from pytest_llmenergy.meters.window import Meters

if TYPE_CHECKING:
    from pathlib import Path

    from tests.doubles.nvml import NvmlDouble
    from tests.doubles.powercurve import ManualScheduler


def watched(nvml: NvmlDouble, scheduler: ManualScheduler, scenario: str) -> Meters:
    nvml.load(f"clock manual\ngpu A\npower 0 0 100\n{scenario}\n")
    meter = open_nvml(scheduler, self_check_s=0)
    return Meters([meter], watches=[GpuWatch(meter.boards, scheduler, Machine())], clock=scheduler.clock)


def flags(meters: Meters, scheduler: ManualScheduler, start_s: float, end_s: float) -> tuple[str, ...]:
    scheduler.advance(start_s - scheduler.now_s)
    with meters.window() as window:
        scheduler.advance(end_s - start_s)
    return window.flags


def test_throttling_inside_a_window_marks_it_alone(nvml: NvmlDouble, scheduler: ManualScheduler) -> None:
    meters = watched(nvml, scheduler, "throttle 0 12 14 0x41")  # 0x01: idle, which is no fault
    assert flags(meters, scheduler, 5, 8) == ()
    assert flags(meters, scheduler, 10, 20) == ("gpu:0: thermal slowdown (hardware)",)
    assert flags(meters, scheduler, 30, 40) == ()


def test_another_process_on_the_gpu_marks_the_window(nvml: NvmlDouble, scheduler: ManualScheduler) -> None:
    meters = watched(nvml, scheduler, f"process 0 {os.getpid()}\nprocess 0 1")
    assert flags(meters, scheduler, 5, 8) == ("gpu:0: used by another process (1)",)


def test_our_own_processes_do_not(nvml: NvmlDouble, scheduler: ManualScheduler) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        meters = watched(nvml, scheduler, f"process 0 {os.getpid()}\nprocess 0 {child.pid}")
        assert flags(meters, scheduler, 5, 8) == ()
        child.communicate()


def load(machine_s: float, own_s: float | None, time_s: float, cpus: int = 8) -> CpuLoad:
    return CpuLoad(time_s=time_s, machine_s=machine_s, own_s=own_s, cpus=cpus)


@pytest.mark.parametrize(
    ("after", "is_flagged"),
    [
        (load(20.0, 20.0, 10.0), False),  # all of it ours
        (load(24.0, 20.0, 10.0), False),  # 0.4 CPUs are not
        (load(40.0, 20.0, 10.0), True),
        (load(40.0, 20.0, 10.0, cpus=128), False),  # little of a large machine
        (load(90.0, 20.0, 10.0, cpus=128), True),
        (load(5.0, 0.0, 0.1), False),  # too short to tell in ticks of 10 ms
        (load(40.0, None, 10.0), False),
    ],
)
def test_load_from_outside_our_tree_is_flagged_from_half_a_cpu_on(
    after: CpuLoad, *, is_flagged: bool
) -> None:
    assert bool(outside_load(load(0.0, 0.0, 0.0, after.cpus), after)) is is_flagged


def test_the_words_tell_how_many_cpus(tmp_path: Path, scheduler: ManualScheduler) -> None:
    """The machine's time is read from its own counters."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9\ncpu0 0 0 0 500 0 0 0 0 0 0\ncpu1 0 0 0 500 0 0 0 0 0 0\nintr 1\n")
    own = tmp_path / str(os.getpid())
    own.mkdir()
    (own / "stat").write_text(f"{os.getpid()} (a) b) S " + "0 " * 40)
    watch = CpuWatch(Machine(proc=tmp_path), scheduler)
    scheduler.advance(0.2)
    mark = watch.begin()
    stat.write_text("cpu0 90 0 10 500 77 0 0 0 0 0\ncpu1 0 0 50 500 0 0 0 0 0 0\n")
    scheduler.advance(0.9)
    assert watch.end(mark) == ("cpu: 1.5 of 2 CPUs busy with other processes",)
    mark = watch.begin()
    scheduler.advance(3)
    assert watch.end(mark) == ()


def test_a_window_shorter_than_the_time_between_two_looks_is_flagged_too(
    tmp_path: Path, scheduler: ManualScheduler
) -> None:
    """Every one of the calls of 0.1 s beside a process that keeps both CPUs busy; none before, none after."""
    own = tmp_path / str(os.getpid())
    own.mkdir()
    (own / "stat").write_text(f"{os.getpid()} (a) b) S " + "0 " * 40)
    stat, ticks = tmp_path / "stat", 0

    def let(seconds: float, *, busy: bool) -> None:
        nonlocal ticks
        for _ in range(round(100 * seconds)):
            ticks += busy
            stat.write_text("".join(f"cpu{n} {ticks} 0 0 0 0 0 0 0 0 0\n" for n in (0, 1)))
            scheduler.advance(0.01)

    let(0.01, busy=False)
    watch = CpuWatch(Machine(proc=tmp_path), scheduler)

    def windows(count: int, *, busy: bool) -> list[tuple[str, ...]]:
        found = []
        for _ in range(count):
            mark = watch.begin()
            let(0.1, busy=busy)
            found.append(watch.end(mark))
        return found

    let(0.3, busy=False)
    assert set(windows(25, busy=False)) == {()}
    let(0.3, busy=True)
    assert () not in windows(25, busy=True)
    let(2.0, busy=False)
    assert set(windows(25, busy=False)) == {()}
