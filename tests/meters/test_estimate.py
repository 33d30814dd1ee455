"""CPU time times thermal design power."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.meters import tdp
from pytest_llmenergy.meters.estimate import EstimateMeter, watts_per_cpu
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from pathlib import Path


def spin(seconds: float) -> None:
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass


def test_it_follows_the_cpu_time_of_this_process() -> None:
    meter = EstimateMeter()
    power_w = meter.source.details["w_per_logical_cpu"]
    mark = meter.begin()
    spin(0.2)
    (found,) = meter.end(mark)
    assert found.provenance is Provenance.ESTIMATED
    assert found.bound_j is None
    assert found.energy_j == pytest.approx(0.2 * power_w, rel=0.1)


def test_sleeping_costs_almost_nothing() -> None:
    meter = EstimateMeter()
    mark = meter.begin()
    time.sleep(0.2)
    (found,) = meter.end(mark)
    assert found.energy_j < 0.05 * 0.2 * meter.source.details["w_per_logical_cpu"]


def test_children_count_while_they_run_and_after_they_were_waited_for() -> None:
    meter = EstimateMeter()
    script = "import sys,time\nwhile time.process_time()<0.3: pass\nprint(1,flush=True)\nsys.stdin.read()"
    mark = meter.begin()
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    (running,) = meter.end(mark)
    child.communicate()
    (waited_for,) = meter.end(mark)
    for found in (running, waited_for):
        assert found.energy_j >= 0.25 * meter.source.details["w_per_logical_cpu"]


def test_a_childs_children_count_once_it_has_waited_for_them() -> None:
    """A launcher starts workers and waits for them."""
    meter = EstimateMeter()
    worker = "import time\nwhile time.process_time()<0.3: pass"
    launcher = (
        "import subprocess,sys\nsubprocess.run([sys.executable,'-S','-c',sys.argv[1]])\n"
        "print(1,flush=True)\nsys.stdin.read()"
    )
    mark = meter.begin()
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", launcher, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    (found,) = meter.end(mark)
    child.communicate()
    assert found.energy_j >= 0.25 * meter.source.details["w_per_logical_cpu"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC 7742 64-Core Processor", "EPYC 7742"),
        ("Intel(R) Xeon(R) Platinum 8480+", "Xeon Platinum 8480+"),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", "Xeon E5-2680 v4"),
        ("AMD EPYC 77420 64-Core Processor", None),
        (None, None),
    ],
)
def test_a_cpu_is_found_by_its_whole_name(model: str | None, name: str | None) -> None:
    found = tdp.find(model)
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("model", "flags", "siblings", "power_w"),
    [
        ("AMD EPYC 7742 64-Core Processor", "fpu", ["0,2", "1,3", "0,2", "1,3"], 225 / 128),
        ("AMD EPYC 7742 64-Core Processor", "fpu", ["0", "1"], 225 / 64),
        ("AMD EPYC 7742 64-Core Processor", "fpu hypervisor", ["0", "1"], 225 / 128),
        ("Some New CPU", "fpu", ["0", "1"], 5.0),
        ("Some New CPU", "fpu", ["0-1", "0-1"], 2.5),
    ],
)
def test_a_busy_cpu_is_taken_to_draw_its_share_of_the_package(
    tmp_path: Path, model: str, flags: str, siblings: list[str], power_w: float
) -> None:
    """Two hardware threads share a core's watts, and a guest sees hardware threads."""
    (tmp_path / "cpuinfo").write_text(f"model name\t: {model}\nflags\t\t: {flags}\n")
    for cpu, text in enumerate(siblings):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    assert watts_per_cpu(Machine(sys=tmp_path, proc=tmp_path))[0] == pytest.approx(power_w)
