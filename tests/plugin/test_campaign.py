"""`pytest bench/ --llm-energy`: the main job, end to end on a machine whose energies are known."""

from __future__ import annotations

import json
from typing import Any

import pytest


def true_gpu_energy_j(tokens_in: int, tokens_out: int, batch_size: int) -> float:
    """m-one's, by the replay file: 2 J a step, 0.01 J a token pass of each sequence."""
    passes = tokens_out * tokens_in + tokens_out * (tokens_out - 1) // 2
    return 2.0 * tokens_out + batch_size * 0.01 * passes


def test_every_cell_of_the_grid_is_measured_and_its_energy_is_the_true_one(project: Any) -> None:
    """Six cells of quick, each with the energy that was scripted, per domain and per token."""
    result = project.run(project.bench(), "--models", "m-one")
    assert result.ret == 0
    document = project.results()
    assert document["schema"] == "llmenergy.results/1"
    assert document["complete"] is True
    points = {(cell["tokens_in"], cell["tokens_out"]) for cell in document["cells"]}
    assert points == {(i, o) for i in (8, 16, 32) for o in (8, 16)}
    for cell in document["cells"]:
        energy_j = true_gpu_energy_j(cell["tokens_in"], cell["tokens_out"], 32)
        summary = cell["summary"]
        assert summary["gpu_energy_j"] == pytest.approx(energy_j)
        assert summary["cpu_energy_j"] == pytest.approx(0.5 * cell["tokens_out"])
        assert summary["energy_j"] == pytest.approx(energy_j + 0.5 * cell["tokens_out"])
        tokens = 32 * cell["tokens_out"]
        assert summary["energy_j_per_token"] == pytest.approx(summary["energy_j"] / tokens)
        assert {trial["tokens_generated"] for trial in cell["trials"]} == {tokens}
        assert (cell["batch_size"], cell["kv_cache"], cell["stop"]["trials"]) == (32, False, 5)
        assert cell["stop"]["reason"] == "runtime+energy"


def test_warm_ups_are_recorded_and_marked_and_do_not_count(project: Any) -> None:
    """One a cell, and one more for the first call after the model was loaded."""
    project.run(project.bench(), "--models", "m-one")
    cells = project.results()["cells"]
    warmups = [[trial for trial in cell["trials"] if trial["warmup"]] for cell in cells]
    assert [len(trials) for trials in warmups] == [2, 1, 1, 1, 1, 1]
    assert [trial["first_after_load"] for trial in warmups[0]] == [True, False]
    assert all(len(cell["trials"]) - len(w) == 5 for cell, w in zip(cells, warmups, strict=True))


def test_each_model_is_loaded_once_and_its_cells_are_in_seeded_random_order(project: Any) -> None:
    """The same seed gives the same order, another seed another; models stay together."""

    def order(seed: str) -> list[tuple[str, int, int]]:
        project.run(project.bench(), "--models", "m-two,m-one", "--llm-energy-seed", seed)
        return [(c["model"], c["tokens_in"], c["tokens_out"]) for c in project.results()["cells"]]

    first, again, other = order("1"), order("1"), order("2")
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
    assert [model for model, _, _ in first] == ["m-two"] * 6 + ["m-one"] * 6
    loads = [json.loads(line)["event"] for line in project.journal().read_text().splitlines()].count("model")
    assert loads == 2


def test_without_the_switch_the_bench_files_are_skipped_with_a_reason(project: Any) -> None:
    """And nothing is written."""
    before = {path.name for path in project.pytester.path.iterdir()}
    result = project.run(project.bench(), "-rs", measuring=False)
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*energy is measured with --llm-energy only*"])
    assert {path.name for path in project.pytester.path.iterdir()} - before <= {"bench", ".benchmarks"}


def test_the_terminal_ends_with_a_table_that_fits_80_columns(project: Any) -> None:
    """Energy per token with its interval, power, and whether it was measured."""
    project.replay('estimated = ["cpu:package-0"]')
    result = project.run(project.bench(), "--models", "m-one")
    lines = result.stdout.lines
    table = lines[next(n for n, line in enumerate(lines) if "energy of LLM inference" in line) :]
    assert max(len(line) for line in table) <= 80
    result.stdout.fnmatch_lines(
        [
            "llm-energy: m-one",
            "*grid quick, batch 32, no KV cache, seed 0, results in out",
            "[[]6/6[]] m-one * 5 x *J/token*",
            "m-one on replay, batch 32, no KV cache",
            " in  out  trials  runtime *",
            "  8    8 * 5 *J * estimated",
            "*results: *results.json",
        ]
    )


def test_the_default_model_is_taken_and_said_so(project: Any) -> None:
    """Without --models; here it is not in the replay file, which is said before anything is measured."""
    result = project.run(project.bench())
    result.stdout.fnmatch_lines(["llm-energy: tiny-llama (the default; choose with --models)"])
    result.stderr.fnmatch_lines(["ERROR: the replay file has no model 'tiny-llama'; it has m-one, m-two."])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_cell_that_several_files_ask_for_is_measured_once(project: Any) -> None:
    """11 tests, 6 cells, 37 trials: 5 + 1 a cell and the first call after the load."""
    project.run(project.bench(), "--models", "m-one").assert_outcomes(passed=11)
    events = [json.loads(line)["event"] for line in project.journal().read_text().splitlines()]
    assert (events.count("cell"), events.count("trial")) == (6, 37)


def test_a_sweep_that_the_grid_has_not_is_skipped_with_the_reason(project: Any) -> None:
    """paper-input has no output sweep and no grid."""
    result = project.run(
        project.bench(),
        "--models",
        "m-two",
        "--llm-energy-grid",
        "paper-input",
        "-rs",
        "--llm-energy-tokens-in=8",
    )
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*the grid paper-input has no output sweep*"])


def test_a_former_campaign_of_the_same_folder_is_kept(project: Any) -> None:
    """Nothing already measured is lost by measuring again."""
    project.run(project.bench(), "--models", "m-one")
    first = (project.pytester.path / "out" / "results.json").read_bytes()
    result = project.run(project.bench(), "--models", "m-two")
    result.stdout.fnmatch_lines(["a former campaign was kept in out/former-1"])
    assert (project.pytester.path / "out" / "former-1" / "results.json").read_bytes() == first
    assert {cell["model"] for cell in project.results()["cells"]} == {"m-two"}


def test_ini_values_stand_and_the_command_line_wins(project: Any) -> None:
    """Every option can be in pyproject.toml."""
    project.pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nllm_energy = true\nllm_energy_models = "m-one"\n'
        'llm_energy_meters = "replay:replay.toml"\nllm_energy_results = "ini"\nllm_energy_batch_size = "4"\n'
        "llm_energy_kv_cache = true\n"
    )
    project.run(project.bench(), measuring=False)
    assert {(c["batch_size"], c["kv_cache"]) for c in project.results("ini")["cells"]} == {(4, True)}
    project.run(project.bench(), "--llm-energy-batch-size=2", "--llm-energy-no-kv-cache", measuring=False)
    assert {(c["batch_size"], c["kv_cache"]) for c in project.results("ini")["cells"]} == {(2, False)}
