"""Our meters beside Zeus, CodeCarbon and pyJoules: one driver double, one powercap tree, one run.

Every tool meters the same windows at the same time: 300 W of GPU and 100 W of CPU inside them, 60 W and
30 W outside. The double knows the energy exactly. Then, one after another: the cost of an empty window, and
the CPU share of doing nothing with the meters open.

A RAPL counter ticks every millisecond. The program that stands in for it (powercap_ticker.c) is started with
real-time priority, and tells when it was late all the same: on a virtual machine nobody can rule that out.
Whether a bound held is told apart for windows with and without a late tick at an edge.

    python -m venv peers && peers/bin/pip install zeus==0.16.0 codecarbon==3.3.2 pyJoules==0.5.1 nvidia-ml-py
    python benchmarks/meters_beside_peers.py --peers peers/bin/python

Needs Linux and a C compiler. The CPU columns need root, for a mount that puts the tree in sysfs's place for
the tools alone; without it they are left out. Peers that are not installed are left out too, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
DOUBLES = ROOT / "tests" / "doubles"
GPU_W, GPU_IDLE_W, CPU_W, CPU_IDLE_W = 300.0, 60.0, 100.0, 30.0
LENGTHS = {0.05: 60, 0.5: 30, 2.0: 8, 10.0: 2}
GAP_S = 0.9
COST_WINDOWS = 200
REST_S = 10.0
TICK_S = 0.001  # of the powercap tree
READING_S = 0.003  # so far from an edge it may be read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# What one window is, for each tool: begin() and end() -> joules of GPU and CPU.


class Ours:
    """This project."""

    def __init__(self) -> None:
        from pytest_llmenergy.meters import open_meters

        self.meters = open_meters(["nvml", *(["rapl"] if has_powercap() else [])])

    def begin(self) -> None:
        """Open a window."""
        self.context = self.meters.window()
        self.window = self.context.__enter__()

    def end(self) -> Callable[[], dict[str, float | None]]:
        """Close it; its energies in J."""
        self.context.__exit__(None, None, None)
        window = self.window

        def figures() -> dict[str, float | None]:
            parts = {part.domain: part for part in window.domains}
            gpu, cpu = parts["gpu:0"], parts.get("cpu:package-0")
            start_s = self.meters.opened_s + window.started_s
            return {
                "block_from": start_s,  # what our bounds are of; perf_counter is monotonic on Linux
                "block_until": start_s + (window.runtime_s or 0.0),
                "gpu": gpu.energy_j,
                "gpu_bound": gpu.bound_j,
                "cpu": None if cpu is None else cpu.energy_j,
                "cpu_bound": None if cpu is None else cpu.bound_j,
            }

        return figures


class Zeus:
    """ml-energy/zeus."""

    def __init__(self) -> None:
        from zeus.monitor import ZeusMonitor

        self.monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[0] if has_powercap() else [])
        self.count = 0

    def begin(self) -> None:
        """Open a window."""
        self.count += 1
        self.monitor.begin_window(str(self.count), sync_execution=False)

    def end(self) -> Callable[[], dict[str, float | None]]:
        """Close it; its energies in J."""
        found = self.monitor.end_window(str(self.count), sync_execution=False)
        cpu = (found.cpu_energy or {}).get(0)
        return lambda: {"gpu": found.gpu_energy[0], "cpu": cpu}


class CodeCarbon:
    """mlco2/codecarbon."""

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        self.tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            log_level="critical",
            save_to_file=False,
            measure_power_secs=1,
            gpu_ids=[0],
        )
        self.count = 0

    def begin(self) -> None:
        """Open a window."""
        self.count += 1
        self.tracker.start_task(f"window {self.count}")

    def end(self) -> Callable[[], dict[str, float | None]]:
        """Close it; its energies in J."""
        found = self.tracker.stop_task(f"window {self.count}")
        return lambda: {"gpu": 3.6e6 * found.gpu_energy, "cpu": 3.6e6 * found.cpu_energy}


class PyJoules:
    """powerapi-ng/pyJoules."""

    def __init__(self) -> None:
        from pyJoules.device.nvidia_device import NvidiaGPUDevice, NvidiaGPUDomain

        NvidiaGPUDevice.available_domains()
        gpu = NvidiaGPUDevice()
        gpu.configure([NvidiaGPUDomain(0)])
        self.devices = [("gpu", gpu, 1e-3)]  # mJ, whatever its documentation says
        if has_powercap():
            from pyJoules.device.rapl_device import RaplDevice, RaplPackageDomain

            rapl = RaplDevice()
            rapl.configure([RaplPackageDomain(0)])
            self.devices.append(("cpu", rapl, 1e-6))

    def _read(self) -> dict[str, float]:
        return {name: unit * device.get_energy()[0] for name, device, unit in self.devices}

    def begin(self) -> None:
        """Open a window."""
        self.mark = self._read()

    def end(self) -> Callable[[], dict[str, float | None]]:
        """Close it; its energies in J."""
        now = self._read()
        return lambda: {name: now[name] - self.mark[name] for name in now}


TOOLS: dict[str, Callable[[], Any]] = {
    "pytest-llmenergy": Ours,
    "zeus 0.16": Zeus,
    "codecarbon 3.3": CodeCarbon,
    "pyJoules 0.5": PyJoules,
}


def has_powercap() -> bool:
    """Whether this process sees the tree."""
    return Path("/sys/class/powercap/intel-rapl:0/energy_uj").exists()


def run_tool(name: str, schedule: list[tuple[float, float]], phase: str) -> None:
    """In a process of its own: print one JSON line a window, or the costs."""
    tool = TOOLS[name]()
    if phase == "costs":
        print(json.dumps(costs(tool)))
        print("end", flush=True)
        return
    tool.begin()  # the first window of some tools holds what was there before
    time.sleep(0.5)
    tool.end()()
    print("ready", flush=True)
    sys.stdin.readline()
    for start_s, end_s in schedule:
        wait_until(start_s)
        tool.begin()
        begun_s = time.monotonic()
        wait_until(end_s)
        ending_s = time.monotonic()
        figures = tool.end()()
        print(json.dumps({"length": round(end_s - start_s, 3), "from": begun_s, "until": ending_s} | figures))
    print("end", flush=True)


def wait_until(at_s: float) -> None:
    """Sleep until a time of the monotonic clock."""
    time.sleep(max(0.0, at_s - time.monotonic()))


def costs(tool: Any) -> dict[str, float]:
    """Wall and CPU time of one window, of asking for its energy, and CPU share at rest."""
    time.sleep(1.0)
    windows, answers = [], []
    for _ in range(COST_WINDOWS if not isinstance(tool, CodeCarbon) else 10):
        started_s = time.perf_counter()
        tool.begin()
        figures = tool.end()
        windows.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        figures()
        answers.append(time.perf_counter() - started_s)
    cpu_s, started_s = time.process_time(), time.perf_counter()
    time.sleep(REST_S)
    return {
        "window_ms": 1e3 * statistics.median(windows),
        "answer_ms": 1e3 * statistics.median(answers),
        "rest_share": (time.process_time() - cpu_s) / (time.perf_counter() - started_s),
    }


class Machine:
    """The driver double's scenario, and a powercap tree whose counter ticks every millisecond."""

    def __init__(self, folder: Path, epoch_s: float, schedule: list[tuple[float, float]]) -> None:
        self.folder = folder
        lines = [f"epoch {epoch_s}", "gpu NVIDIA_A100 latch_ms=100 phase_ms=37", f"power 0 -1e6 {GPU_IDLE_W}"]
        cpu = [(schedule[0][0] - 1000, CPU_IDLE_W)]
        for start_s, end_s in schedule:
            lines += [f"power 0 {start_s - epoch_s} {GPU_W}", f"power 0 {end_s - epoch_s} {GPU_IDLE_W}"]
            cpu += [(start_s, CPU_W), (end_s, CPU_IDLE_W)]
        self.scenario = folder / "scenario"
        self.scenario.write_text("\n".join(lines) + "\n")
        self.schedule = schedule
        zone = folder / "class" / "powercap" / "intel-rapl" / "intel-rapl:0"
        zone.mkdir(parents=True)
        (zone.parent.parent / "intel-rapl:0").symlink_to("intel-rapl/intel-rapl:0")
        (zone.parent / "subsystem").symlink_to("..")
        (zone / "name").write_text("package-0\n")
        (zone / "max_energy_range_uj").write_text("262143328850\n")
        (zone / "constraint_0_power_limit_uw").write_text("280000000\n")
        counter = zone / "energy_uj"
        counter.write_text(f"{0:020d}\n")
        self._segments = "".join(f"{from_s:.9f} {power_w}\n" for from_s, power_w in cpu)
        self._counter = counter
        self.late: list[tuple[float, float]] = []  # while the counter showed what it should no longer

    def energy_j(self, from_s: float, until_s: float, inside_w: float, idle_w: float) -> float:
        """The truth."""
        busy_s = sum(max(0.0, min(end_s, until_s) - max(start_s, from_s)) for start_s, end_s in self.schedule)
        return idle_w * (until_s - from_s) + (inside_w - idle_w) * busy_s

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Let the counter tick; afterwards `late` tells when it did not."""
        ticker, log = self.folder / "ticker", self.folder / "late"
        source = Path(__file__).with_name("powercap_ticker.c")
        subprocess.run(["cc", "-O1", "-o", ticker, source, "-lm"], check=True)
        with log.open("w") as said:
            running = subprocess.Popen(
                [ticker, self._counter, str(TICK_S)], stdin=subprocess.PIPE, stdout=said, text=True
            )
            running.stdin.write(self._segments)
            running.stdin.close()
            try:
                yield
            finally:
                running.kill()
                running.wait()
        for line in log.read_text().splitlines():
            _, shown_s, until_s = line.split()
            self.late.append((float(shown_s) + TICK_S, float(until_s)))

    def was_late(self, *edges_s: float) -> bool:
        """Whether the counter may have been read while it was late."""
        return any(
            from_s - READING_S < edge_s < until_s + READING_S
            for from_s, until_s in self.late
            for edge_s in edges_s
        )


def command(python: str, machine: Machine, arguments: list[str], *, mounted: bool) -> list[str]:
    """A tool's command line, with the tree in sysfs's place where that can be done."""
    own = [python, str(Path(__file__).resolve()), *arguments]
    if not mounted:
        return own
    bind = 'mount --bind "$0" /sys/class && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", bind, str(machine.folder / "class"), *own]


def can_mount(folder: Path) -> bool:
    """Whether we may mount."""
    folder.mkdir(exist_ok=True)
    trial = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/class', str(folder)]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers")
    parser.add_argument("--short", action="store_true", help="without the windows of 10 s")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--phase", default="errors", help=argparse.SUPPRESS)
    parser.add_argument("--schedule", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        run_tool(options.tool, json.loads(options.schedule.read_text()), options.phase)
        return
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        compare(
            Path(folder), options.peers, LENGTHS if not options.short else dict(list(LENGTHS.items())[:3])
        )


def make_schedule(lengths: dict[float, int]) -> list[tuple[float, float]]:
    """When the windows begin and end."""
    source = random.Random(0)
    wanted = [length for length, count in lengths.items() for _ in range(count)]
    source.shuffle(wanted)
    at_s, schedule = time.monotonic() + 40, []
    for length in wanted:
        at_s += GAP_S + 0.2 * source.random()
        schedule.append((at_s, at_s + length))
        at_s += length
    return schedule


def compare(folder: Path, peers: str, lengths: dict[float, int]) -> None:
    """All tools on one machine, at once for the errors and in turn for the costs."""
    sys.path.insert(0, str(DOUBLES.parent))
    from doubles.nvml import library

    schedule = make_schedule(lengths)
    machine = Machine(folder, schedule[0][0] - 100, schedule)
    (folder / "schedule.json").write_text(json.dumps(schedule))
    smi = folder / "bin" / "nvidia-smi"  # CodeCarbon meters no GPU where it finds no such command
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library().parent),
        "NVML_DOUBLE_SCENARIO": str(machine.scenario),
        "PATH": f"{smi.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    mounted = can_mount(folder / "probe")
    if not mounted:
        print("Without root no powercap tree can be mounted: the CPU columns are left out.")

    def start(name: str, phase: str) -> subprocess.Popen[str]:
        python = sys.executable if name == "pytest-llmenergy" else peers
        arguments = ["--tool", name, "--phase", phase, "--schedule", str(folder / "schedule.json")]
        return subprocess.Popen(
            ["nice", "-n", "10", *command(python, machine, arguments, mounted=mounted)],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("w"),
            text=True,
            start_new_session=True,
        )

    with machine.ticking():
        errors = measure_errors(start, machine, folder)
        costs_of = {name: last_line(start(name, "costs"), folder / f"{name}.log") for name in errors}
    print_errors(errors, lengths, mounted=mounted)
    print_bounds(errors["pytest-llmenergy"], machine, mounted=mounted)
    print_costs({name: cost for name, cost in costs_of.items() if cost})


def measure_errors(
    start: Callable[[str, str], subprocess.Popen[str]], machine: Machine, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Every tool on the same windows at the same time; the windows with their truth, by tool."""
    running = {name: start(name, "errors") for name in TOOLS}
    for name, process in list(running.items()):
        if not any(line.strip() == "ready" for line in iter(process.stdout.readline, "")):
            said = (folder / f"{name}.log").read_text().strip().splitlines()
            print(f"{name} is left out: {said[-1] if said else 'it ended'}")
            del running[name]
    for process in running.values():
        process.stdin.write("go\n")
        process.stdin.flush()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, process in running.items():
        windows = []
        for line in lines_of(process):
            if line.startswith("{"):
                window = json.loads(line)
                ends = (window["from"], window["until"])
                window["gpu_truth"] = machine.energy_j(*ends, GPU_W, GPU_IDLE_W)
                window["cpu_truth"] = machine.energy_j(*ends, CPU_W, CPU_IDLE_W)
                windows.append(window)
        found[name] = windows
    return found


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """What a tool prints up to its last word; then it is ended with all it started (Zeus leaves a child)."""
    lines = []
    for line in iter(process.stdout.readline, ""):
        if line.strip() == "end":
            break
        lines.append(line)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return lines


def last_line(process: subprocess.Popen[str], log: Path) -> dict[str, float]:
    """What a tool costs; empty where it failed."""
    lines = lines_of(process)
    if lines and lines[-1].startswith("{"):
        found: dict[str, float] = json.loads(lines[-1])
        return found
    print(f"the costs of {log.stem} are left out: {log.read_text().strip().splitlines()[-1:]}")
    return {}


def print_errors(
    errors: dict[str, list[dict[str, Any]]], lengths: dict[float, int], *, mounted: bool
) -> None:
    """One line a tool, one column a length."""
    for domain in ("gpu", *(["cpu"] if mounted else [])):
        print(f"\n{domain.upper()}: mean / largest error of a window's energy, and its ratio to ours")
        print(f"{'':18}" + "".join(f"{f'{length:g} s':>20}" for length in lengths))
        ours = {}
        for name, windows in errors.items():
            cells = []
            for length in lengths:
                off = [
                    abs(window[domain] / window[f"{domain}_truth"] - 1)
                    for window in windows
                    if abs(window["length"] - length) < 1e-6 and window.get(domain) is not None
                ]
                if not off:
                    cells.append("-")
                    continue
                mean = statistics.fmean(off)
                ours.setdefault(length, mean)
                ratio = f"{mean / ours[length]:.0f}x" if ours[length] > 0 else "-"
                cells.append(f"{100 * mean:.2f}/{100 * max(off):.1f} % {ratio:>5}")
            print(f"{name:18}" + "".join(f"{cell:>20}" for cell in cells))


def print_bounds(windows: list[dict[str, Any]], machine: Machine, *, mounted: bool) -> None:
    """How many of our windows were within our own bound; where the tree's counter was late, apart."""
    powers = {"gpu": (GPU_W, GPU_IDLE_W), "cpu": (CPU_W, CPU_IDLE_W)}
    print()
    for domain in ("gpu", *(["cpu"] if mounted else [])):
        held: dict[bool, list[bool]] = {False: [], True: []}
        for window in windows:
            if window.get(domain) is None:
                continue
            block = (window["block_from"], window["block_until"])
            off_j = abs(window[domain] - machine.energy_j(*block, *powers[domain]))
            late = domain == "cpu" and machine.was_late(*block)
            held[late].append(off_j <= window[f"{domain}_bound"] + 0.002)
        print(f"{domain.upper()}: our windows within our own bound: {sum(held[False])} of {len(held[False])}")
        if held[True]:
            print(f"  and where the tree was late at an edge: {sum(held[True])} of {len(held[True])}")


def print_costs(costs_of: dict[str, dict[str, float]]) -> None:
    """One line a tool."""
    ours = costs_of["pytest-llmenergy"]
    print(f"\n{'Costs':18}{'window':>12}{'to ours':>9}{'its energy':>12}{'CPU at rest':>14}")
    for name, cost in costs_of.items():
        print(
            f"{name:18}{cost['window_ms']:>9.3f} ms{cost['window_ms'] / ours['window_ms']:>8.1f}x"
            f"{cost['answer_ms']:>9.3f} ms{100 * cost['rest_share']:>12.2f} %"
        )
    print(
        "The energy of one of our windows may be known only after the counter's next two ticks; asking for\n"
        "it waits for them (asleep), and a window does not. Zeus documents 10 ms a window."
    )


if __name__ == "__main__":
    main()
