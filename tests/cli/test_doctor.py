"""`llmenergy-report doctor`, run as a person runs it, on machines made of doubles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.doubles.nvml import SCENARIO_VARIABLE, library
from tests.doubles.powercap import PowercapTree

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-c", "from pytest_llmenergy.cli import main; main()", "doctor"]


def doctor(
    folder: Path, scenario: str | None, *arguments: str, visible: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLM_ENERGY_SYS": str(folder / "sys"), "PATH": "/usr/bin:/bin"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    if scenario is not None:
        (folder / "scenario").write_text(scenario)
        environment |= {"LD_LIBRARY_PATH": str(library().parent), SCENARIO_VARIABLE: str(folder / "scenario")}
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_machine_with_a_gpu_and_rapl_is_told_whole(tmp_path: Path) -> None:
    PowercapTree(tmp_path / "sys/class/powercap").add("intel-rapl:0", "package-0")
    answer = tmp_path / "doctor.json"
    done = doctor(
        tmp_path, "gpu NVIDIA_A100\npower 0 -1e6 60\n", "--self-check", "1.5", "--json", str(answer)
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "measured" in rows["nvml"]
    assert "100 ms" in rows["nvml"]
    assert "cpu:package-0" in rows["rapl"]
    assert "not-installed" in rows["uprof"]
    assert "self check: passed" in done.stdout
    assert "unit check: passed" in done.stdout
    document = json.loads(answer.read_text())
    assert document["schema"] == "llmenergy.doctor/1"
    assert document["sources"][0]["name"] == "nvml"
    assert document["sources"][0]["details"]["gpu:0"]["self_check"].startswith("passed")


def test_a_bare_machine_is_told_what_would_help(tmp_path: Path) -> None:
    done = doctor(tmp_path, "gpu A\npower 0 0 9\nerror nvmlInitWithFlags -1 9 -1e9 1e9\n")
    assert done.returncode == 0, done.stderr
    assert "sudo modprobe nvidia" in done.stdout
    assert "sudo modprobe intel_rapl_msr" in done.stdout
    assert "estimated" in done.stdout


def test_several_gpus_of_different_kinds_are_told_in_80_columns(tmp_path: Path) -> None:
    """One by its counter, one by its power, one that is shared and whose counter is not believed."""
    powercap = PowercapTree(tmp_path / "sys/class/powercap")
    for number in range(2):
        powercap.add(f"intel-rapl:{number}", f"package-{number}")
        powercap.add(f"intel-rapl:{number}:0", "dram")
    done = doctor(
        tmp_path,
        "gpu NVIDIA_H100_80GB_HBM3 uuid=GPU-5e3ab1f2-1111-2222-3333-444455556666 limit_w=700\n"
        "gpu Tesla_P100-PCIE-16GB arch=4 counter=0\ngpu NVIDIA_A100-SXM4-80GB mig=1\n"
        "power 0 -1e6 100\npower 1 -1e6 30\npower 2 -1e6 60\nscale 2 0.7\nmigdevice 2 MIG-11\n",
        "--self-check",
        "1.5",
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "gpu:1: Tesla P100-PCIE-16GB, by sampled power" in done.stdout
    assert "MIG instances" in done.stdout
    assert "self check: failed: the counter differs from integrated power by -" in done.stdout


def test_a_gpu_that_is_named_and_not_there_is_told_among_the_rest(tmp_path: Path) -> None:
    """The variable is the fault then; what the CPU has is told all the same."""
    done = doctor(tmp_path, "gpu A\npower 0 0 9\n", "--self-check", "0", visible="5")
    assert done.returncode == 0, done.stderr
    assert "CUDA_VISIBLE_DEVICES names '5'" in done.stdout
    assert "estimated" in done.stdout


def test_a_command_that_would_help_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    """So that it can be copied."""
    done = doctor(tmp_path, None, "--self-check", "0")
    assert "    sudo modprobe intel_rapl_msr" in done.stdout.splitlines()


def test_an_answer_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    done = doctor(tmp_path, None, "--self-check", "0", "--json", "/proc/no/doctor.json")
    assert done.returncode == 2
    assert "Error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["-1", "soon"])
def test_a_self_check_of_no_length_is_refused(tmp_path: Path, text: str) -> None:
    assert doctor(tmp_path, None, "--self-check", text).returncode == 2
