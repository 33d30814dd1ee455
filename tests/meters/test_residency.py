"""Which cores our threads ran on."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_llmenergy.meters.machine import Machine, ThreadTime, thread_times
from pytest_llmenergy.meters.residency import shares

if TYPE_CHECKING:
    from pathlib import Path


def test_alone_on_a_core_we_own_it_whole_and_beside_others_in_proportion() -> None:
    before = {1: ThreadTime(0, 5.0), 2: ThreadTime(1, 5.0)}
    after = {1: ThreadTime(0, 5.05), 2: ThreadTime(1, 5.02), 3: ThreadTime(2, 0.0)}
    found = shares(before, after, {0: 0.05, 1: 0.1, 2: 0.1}, {0: 0, 1: 1, 2: 2})
    assert found == pytest.approx({0: 1.0, 1: 0.2})


def test_the_two_hardware_threads_of_a_core_are_one() -> None:
    before = {1: ThreadTime(0, 0.0), 2: ThreadTime(64, 0.0)}
    after = {1: ThreadTime(0, 0.05), 2: ThreadTime(64, 0.05)}
    assert shares(before, after, {0: 0.1}, {0: 0, 64: 0}) == pytest.approx({0: 1.0})


def test_logical_cpus_are_mapped_to_physical_cores_by_their_siblings(tmp_path: Path) -> None:
    """Two EPYC 7742: CPU 128 is the second thread of core 0, and core ids repeat across packages."""
    for cpu in range(256):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 128},{cpu % 128 + 128}\n")
        (folder / "core_id").write_text(f"{cpu % 64}\n")
    found = Machine(sys=tmp_path).core_of_cpu()
    assert [found[cpu] for cpu in (0, 63, 64, 127, 128, 255)] == [0, 63, 64, 127, 0, 127]


def test_every_thread_is_seen_with_its_own_time() -> None:
    """A process has one last CPU, but a model runs on many threads."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    threads = [threading.Thread(target=spin) for _ in range(2)]
    before = thread_times(Machine().proc, os.getpid())
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + 20  # on a busy machine each gets its turn late
    after = before
    while time.monotonic() < until_s:
        time.sleep(0.05)
        after = thread_times(Machine().proc, os.getpid())
        if all(after[thread.native_id or 0].busy_s >= 0.03 for thread in threads):
            break
    stop.set()
    for thread in threads:
        thread.join()
        assert after[thread.native_id or 0].busy_s >= 0.03
        assert thread.native_id not in before


def test_a_process_name_may_hold_anything(tmp_path: Path) -> None:
    """The fields of a stat file begin after the last parenthesis."""
    task = tmp_path / "7/task/7"
    task.mkdir(parents=True)
    fields = ["S", *["0"] * 10, "30", "20", *["0"] * 23, "5", "0", "0"]
    (task / "stat").write_text(f"7 (a) 1 2 (b) c) {' '.join(fields)}\n")
    found = thread_times(tmp_path, 7)
    assert found == {7: ThreadTime(5, 0.5)}
