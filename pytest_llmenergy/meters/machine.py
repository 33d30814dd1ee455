"""Where the kernel shows the machine: sysfs and procfs, the tree of our processes, the CPUs' topology."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SYS_VARIABLE = "LLM_ENERGY_SYS"  # where the machine's /sys is mounted, in a container say
PROC_VARIABLE = "LLM_ENERGY_PROC"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Machine:
    """The roots of sysfs and procfs."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")

    @classmethod
    def here(cls) -> Machine:
        """This machine, or what the environment variables say."""
        return cls(Path(os.environ.get(SYS_VARIABLE, "/sys")), Path(os.environ.get(PROC_VARIABLE, "/proc")))

    @property
    def powercap(self) -> Path:
        """The powercap class."""
        return self.sys / "class/powercap"

    @property
    def hwmon(self) -> Path:
        """The hardware monitors."""
        return self.sys / "class/hwmon"

    def cpu_model(self) -> str | None:
        """The CPU's name as the kernel has it."""
        match = re.search(r"^model name\s*:\s*(.+)$", _read(self.proc / "cpuinfo") or "", re.MULTILINE)
        return match[1].strip() if match else None

    def is_virtual(self) -> bool:
        """Whether this is a guest of a hypervisor."""
        return bool(
            re.search(r"^flags\s*:.*\bhypervisor\b", _read(self.proc / "cpuinfo") or "", re.MULTILINE)
        )

    def core_of_cpu(self) -> dict[int, int]:
        """Logical CPU -> physical core, numbered from 0 over all packages in the order of their first CPU.

        By `thread_siblings_list`: `core_id` repeats across packages.
        """
        siblings: dict[str, list[int]] = {}
        for folder in self.sys.glob("devices/system/cpu/cpu[0-9]*"):
            shared = _read(folder / "topology/thread_siblings_list")
            if shared is not None:
                siblings.setdefault(shared.strip(), []).append(int(folder.name.removeprefix("cpu")))
        cores = sorted(sorted(cpus) for cpus in siblings.values())
        return {cpu: core for core, cpus in enumerate(cores) for cpu in cpus}

    def busy_s_by_cpu(self) -> dict[int, float]:
        """CPU time that was not idle since boot, by logical CPU."""
        busy: dict[int, float] = {}
        for line in (_read(f"{self.proc}/stat") or "").splitlines():
            match = re.match(r"cpu(\d+)\s+(.+)", line)
            if match:
                # user nice system idle iowait irq softirq steal; guest time is inside user's.
                ticks = [int(field) for field in match[2].split()[:8]]
                busy[int(match[1])] = (sum(ticks) - sum(ticks[3:5])) * TICK_S
        return busy


def _read(path: Path | str) -> str | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - read many times a second: Path costs more
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """What one thread has used, and where it last ran."""

    cpu: int
    busy_s: float


def _stat_fields(text: str) -> list[str]:
    """The fields of a stat file from the third on: the name before them may hold anything."""
    return text[text.rindex(")") + 2 :].split()


_adopted: set[int] = set()


def adopt(pids: Iterable[int]) -> None:
    """Take these processes, and no others, for our own: a server that works for us, say."""
    _adopted.clear()
    _adopted.update(pids)


def descendants(proc: Path, pid: int) -> Iterator[int]:
    """The process, its children and theirs, and what it adopted; those that end meanwhile are left out."""
    seen: set[int] = set()
    for root in (pid, *(sorted(_adopted) if pid == os.getpid() else ())):
        for process in _tree(proc, root):
            if process not in seen:
                seen.add(process)
                yield process


def _tree(proc: Path, pid: int) -> Iterator[int]:
    yield pid
    for task in _tasks(proc, pid):
        children = _read(f"{task}/children")
        if children is None:
            return
        for child in children.split():
            yield from _tree(proc, int(child))


def _tasks(proc: Path, pid: int) -> list[str]:
    folder = f"{proc}/{pid}/task"
    try:
        return [f"{folder}/{task}" for task in os.listdir(folder)]  # noqa: PTH208 - as in _read
    except OSError:
        return []


def thread_times(proc: Path, pid: int) -> dict[int, ThreadTime]:
    """Thread id -> its time and its last CPU, of every thread of a process and its descendants."""
    times: dict[int, ThreadTime] = {}
    for process in descendants(proc, pid):
        for task in _tasks(proc, process):
            text = _read(f"{task}/stat")
            if text:
                # Fields 14, 15 and 39 of proc(5), counted from 1; ours begin with the third.
                fields = _stat_fields(text)
                times[int(task.rpartition("/")[2])] = ThreadTime(
                    int(fields[36]), (int(fields[11]) + int(fields[12])) * TICK_S
                )
    return times


def tree_busy_s(proc: Path, pid: int) -> float | None:
    """CPU time of a process, its descendants and the children they have waited for; None if it is gone.

    Our own process is read with the resolution of the CPU's clock, the others in ticks of 10 ms.
    """
    total_s = 0.0
    for process in descendants(proc, pid):
        text = _read(f"{proc}/{process}/stat")
        if not text:
            if process == pid:
                return None
            continue
        user, system, waited_user, waited_system = (int(field) for field in _stat_fields(text)[11:15])
        if process == os.getpid():
            total_s += time.process_time() + (waited_user + waited_system) * TICK_S
        else:
            total_s += (user + system + waited_user + waited_system) * TICK_S
    return total_s
