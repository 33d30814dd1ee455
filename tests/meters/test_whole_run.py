"""Whole pytest runs on a driver whose energy is known: from the library to the results document."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.nvml import SCENARIO_VARIABLE, library
from tests.doubles.powercap import PowercapTree

TEST = """
    import time

    def test_sleep(energy):
        def work():
            time.sleep(0.2)
        energy(work)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library().parent))
    monkeypatch.setenv("LLM_ENERGY_SYS", str(tmp_path / "sys"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *os.sys.path[1:2]]))

    def start(scenario: str, test: str, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
        (tmp_path / "scenario").write_text(scenario)
        monkeypatch.setenv(SCENARIO_VARIABLE, str(tmp_path / "scenario"))
        pytester.makepyfile(test)
        result = pytester.runpytest_subprocess(
            "--llm-energy",
            "--llm-energy-results=out",
            "--llm-energy-max-trials=6",
            "-pno:cacheprovider",
            *arguments,
        )
        path = pytester.path / "out" / "results.json"
        return result, json.loads(path.read_text()) if path.exists() else {}

    return start


def test_a_callable_is_measured_on_a_gpu_with_its_bound(run: Any) -> None:
    result, document = run("gpu A100\npower 0 -1e6 300\n", TEST, "--llm-energy-meters", "nvml")
    result.assert_outcomes(passed=1)
    (window,) = document["windows"]
    counted = [trial for trial in window["trials"] if not trial["warmup"] and trial["excluded"] is None]
    assert len(counted) >= 5
    for trial in counted:
        (part,) = trial["domains"]
        assert part["provenance"] == "measured"
        assert abs(part["energy_j"] - 300 * trial["runtime_s"]) <= part["bound_j"] + 0.01 * part["energy_j"]
        assert part["bound_j"] <= 0.02 * part["energy_j"]
        assert trial["meter_cpu_s"] < 0.1 * trial["runtime_s"]
    (nvml,) = [meter for meter in document["environment"]["meters"] if meter["name"] == "nvml"]
    assert nvml["details"]["gpu:0"]["self_check"].startswith("passed")


def test_a_trace_is_kept_beside_the_results(run: Any, pytester: pytest.Pytester) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the trace extra is not installed")
    result, _ = run("gpu A100\npower 0 -1e6 300\n", TEST, "--llm-energy-meters", "nvml", "--llm-energy-trace")
    result.assert_outcomes(passed=1)
    table = parquet.read_table(pytester.path / "out" / "trace.parquet")
    assert table.column_names == ["time_s", "domain", "power_w"]
    assert set(table["domain"].to_pylist()) == {"gpu:0"}
    assert set(table["power_w"].to_pylist()) == {300.0}


def test_a_counter_reset_in_mid_trial_spoils_that_trial_alone(run: Any) -> None:
    """It stays in the record with the reason, and another one takes its place."""
    test = f"""
    import ctypes, os, time

    calls = []

    def test_sleep(energy):
        def work():
            calls.append(1)
            time.sleep(0.4)
            if len(calls) == 4:  # as if the driver were loaded anew
                driver = ctypes.CDLL("libnvidia-ml.so.1")
                driver.double_load(os.environ["{SCENARIO_VARIABLE}"].encode())
        energy(work)
    """
    arguments = ("--llm-energy-meters", "nvml", "--llm-energy-window-error", "0")
    result, document = run("gpu A100\npower 0 -1e6 300\n", test, *arguments)
    result.assert_outcomes(passed=1)
    (window,) = document["windows"]
    reset = [trial for trial in window["trials"] if "reset" in (trial["excluded"] or "")]
    counted = [trial for trial in window["trials"] if not trial["warmup"] and trial["excluded"] is None]
    assert [trial["index"] for trial in reset] == [3]
    assert reset[0]["domains"][0]["energy_j"] is None
    assert len(counted) >= 5


def test_a_gpu_lost_in_mid_trial_spoils_that_trial_alone(run: Any) -> None:
    test = f"""
    import ctypes, os, pathlib, time

    calls = []

    def test_sleep(energy):
        scenario = pathlib.Path(os.environ["{SCENARIO_VARIABLE}"])
        driver = ctypes.CDLL("libnvidia-ml.so.1")

        def work():
            calls.append(1)
            time.sleep(0.2)
            if len(calls) == 4:  # it comes back half a second later, as after a reset
                lost = scenario.with_name("lost")
                errors = "error nvmlDeviceGetTotalEnergyConsumption 0 15 -1e9 0.5"
                lost.write_text(scenario.read_text() + errors)
                driver.double_load(str(lost).encode())
        energy(work)
    """
    arguments = ("--llm-energy-meters", "nvml", "--llm-energy-window-error", "0", "--llm-energy-idle", "0")
    result, document = run("gpu A100\npower 0 -1e6 300\n", test, *arguments)
    result.assert_outcomes(passed=1)
    (window,) = document["windows"]
    lost = [trial for trial in window["trials"] if "GPU is lost" in (trial["excluded"] or "")]
    counted = [trial for trial in window["trials"] if not trial["warmup"] and trial["excluded"] is None]
    assert lost
    assert lost[0]["index"] == 3
    assert all(trial["domains"][0]["energy_j"] is None for trial in lost)
    assert len(counted) >= 5


def test_a_counter_that_power_contradicts_is_told_before_anything_is_measured(run: Any) -> None:
    test = "def test_nothing(energy): pass"
    result, _ = run("gpu A100\npower 0 -1e6 300\nscale 0 0.7\n", test, "--llm-energy-meters", "nvml")
    result.stdout.fnmatch_lines(
        ["*gpu:0: self-check failed: the counter differs from integrated power by -*"]
    )


def test_an_asked_for_meter_that_is_not_there_is_one_clear_message(run: Any, tmp_path: Path) -> None:
    PowercapTree(tmp_path / "sys/class/powercap")
    result, document = run("gpu A\npower 0 0 9\n", TEST, "--llm-energy-meters", "rapl")
    assert result.ret != 0
    assert not document
    output = "\n".join([*result.outlines, *result.errlines])
    assert "modprobe intel_rapl_msr" in output
    assert "Traceback" not in output
