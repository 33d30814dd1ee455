"""Our trials in pytest-benchmark, and energy results without it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llmenergy.plugin.benchmark import ReplayTimer

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

M_ONE = ("--models", "m-one")


def benchmarks(project: Any) -> list[dict[str, Any]]:
    """pytest-benchmark's own JSON."""
    found: list[dict[str, Any]] = json.loads((project.pytester.path / "bench.json").read_text())["benchmarks"]
    return found


def test_its_json_holds_exactly_our_counted_trials(project: Any) -> None:
    """Contract with pytest-benchmark 5.1 and later: the timer option, pedantic, extra_info."""
    project.replay("[noise]\ntrial = 0.002")
    project.run(project.bench(), *M_ONE, "--benchmark-json=bench.json", benchmark=True)
    found = benchmarks(project)
    assert len(found) == 6
    by_cell = {(c["tokens_in"], c["tokens_out"]): c for c in project.results()["cells"]}
    for one in found:
        cell = by_cell[one["params"]["tokens_in"], one["params"]["tokens_out"]]
        ours = [trial["runtime_s"] for trial in cell["trials"] if not trial["warmup"]]
        assert one["stats"]["data"] == ours
        extra = one["extra_info"]["llmenergy"]
        assert extra["summary"] == cell["summary"]
        gpu = next(d["energy_j"] for d in extra["domains"] if d["domain"] == "gpu:0")
        assert len(gpu) == len(ours)


def test_its_json_names_our_meters(project: Any) -> None:
    """Stored benchmarks say what metered them; machine info stays equal between runs."""
    project.run(project.bench(), *M_ONE, "--benchmark-json=bench.json", benchmark=True)
    document = json.loads((project.pytester.path / "bench.json").read_text())
    assert document["llmenergy"]["meters"][0]["name"] == "replay"
    assert "llmenergy" not in document["machine_info"]


def test_its_storage_and_comparison_work(project: Any) -> None:
    """Saved, then compared."""
    project.run(project.bench(), *M_ONE, "--benchmark-save=base", benchmark=True)
    result = project.run(project.bench(), *M_ONE, "--benchmark-compare", benchmark=True)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_input_sweep[[]m-one-in8-out8[]] (NOW)*"])


@pytest.mark.parametrize(
    "switch",
    ["--benchmark-disable", "--benchmark-skip", "--benchmark-only", "-pno:benchmark", "-n0"],
)
def test_energy_results_come_out_whatever_it_is_told(project: Any, switch: str) -> None:
    """Disabled, skipped, alone, absent, under xdist's plugin without workers."""
    result = project.run(project.bench(), *M_ONE, switch, benchmark=True)
    assert result.ret == 0
    assert len(project.results()["cells"]) == 6


def test_energy_results_come_out_under_codspeed(project: Any) -> None:
    """pytest-codspeed replaces the `benchmark` fixture; ours does not need it."""
    pytest.importorskip("pytest_codspeed", reason="pytest-codspeed is not installed")
    result = project.run(project.bench(), *M_ONE, "--codspeed", benchmark=True)
    assert result.ret == 0
    assert len(project.results()["cells"]) == 6


def test_a_test_that_times_something_of_its_own_keeps_its_clock(project: Any) -> None:
    """Both fixtures in one test: each measures for itself."""
    project.pytester.makepyfile(
        """
        import time
        def test_both(energy, benchmark):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
            benchmark.pedantic(time.sleep, args=(0.002,), rounds=2)
            assert benchmark.stats.stats.min >= 0.002
        """
    )
    project.run(*M_ONE, benchmark=True).assert_outcomes(passed=1)


def test_a_window_alone_registers_no_benchmark_and_warns_of_none(project: Any) -> None:
    """`benchmark` would complain of not being used."""
    project.pytester.makepyfile("def test_it(energy):\n    with energy.window('w'):\n        pass")
    result = project.run(*M_ONE, "-Werror", benchmark=True)
    result.assert_outcomes(passed=1)


def test_the_replay_timer_gives_back_its_durations_exactly() -> None:
    """0, d1, 0, d2: no rounding of sums."""
    timer = ReplayTimer()
    timer.load([0.1, 0.7])
    readings = [timer() for _ in range(6)]
    assert readings == [0.0, 0.1, 0.0, 0.7, 0.0, 0.0]
