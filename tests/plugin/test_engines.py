"""What a campaign does with the engines' answers: phases, servers, cells that do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pytest_llmenergy.meters.machine import adopt, descendants
from tests.doubles.openai_server import serving

QUICK = ("--llm-energy-tokens-in=8", "--llm-energy-tokens-out=4", "--llm-energy-batch-size=2", "-k", "grid")


def served(project: Any, url: str, *args: str) -> Any:
    """A campaign on a server, with an estimate of its energy."""
    here = ("--llm-energy-meters=estimate", f"--llm-energy-base-url={url}", "--models=served")
    return project.run(project.bench(), *here, *QUICK, *args)


def test_prefill_and_decode_are_told_apart(project: Any) -> None:
    """On a machine whose first token costs what a call of one token costs, the phases are exactly that."""
    result = project.run(
        project.bench(), "--models=m-one", "--llm-energy-phases=3", "--llm-energy-tokens-in=8", "-k", "grid"
    )
    assert result.ret == 0
    for cell in project.results()["cells"]:
        n = cell["tokens_out"]
        prefill, decode = cell["summary"]["phases"]
        assert (prefill["name"], prefill["trials"], decode["name"], decode["trials"]) == (
            "prefill",
            3,
            "decode",
            3,
        )
        assert prefill["gpu_energy_j"] == pytest.approx(2.0 + 32 * 0.01 * 8)
        assert prefill["runtime_s"] == pytest.approx(0.01 + 32 * 0.0001 * 8)
        whole = cell["summary"]
        assert prefill["energy_j"] + decode["energy_j"] == pytest.approx(whole["energy_j"])
        assert prefill["runtime_s"] + decode["runtime_s"] == pytest.approx(whole["runtime_s"])
        assert whole["ttft_s"] == pytest.approx(prefill["runtime_s"])
        assert whole["tpot_s"] == pytest.approx(decode["runtime_s"] / (n - 1))
    result.stdout.fnmatch_lines(["*prefill and decode*", "*m-one*"])
    assert "were excluded" not in result.stdout.str()


def test_trials_in_phases_are_kept_and_do_not_count(project: Any) -> None:
    """They come after the counted ones, say why they do not count, and no other trial is marked."""
    project.run(project.bench(), "--models=m-one", "--llm-energy-phases=2", "-k", "grid")
    for cell in project.results()["cells"]:
        assert cell["stop"]["trials"] == 5
        assert [trial["excluded"] for trial in cell["trials"] if not trial["warmup"]] == [None] * 5 + [
            "phases"
        ] * 2
        assert all(not trial["phases"] for trial in cell["trials"][:-2])


def test_no_phases_are_measured_unless_asked_for(project: Any) -> None:
    result = project.run(project.bench(), "--models=m-one")
    assert all(trial["excluded"] is None for cell in project.results()["cells"] for trial in cell["trials"])
    assert "prefill and decode" not in result.stdout.str()


def test_a_server_is_measured_like_a_model(project: Any) -> None:
    """The same bench files, the server's own exact lengths, its time to first token, its cache on."""
    with serving(token_s=0.01) as (url, behaviour):
        result = served(project, url, "--llm-energy-phases=1")
        assert result.ret == 0
        (cell,) = project.results()["cells"]
        assert cell["error"] is None
        assert cell["kv_cache"] is True
        assert all(trial["tokens_generated"] == 8 for trial in cell["trials"])
        assert all(trial["ttft_s"] is not None and trial["tpot_s"] > 0 for trial in cell["trials"])
        assert [phase["name"] for phase in cell["summary"]["phases"]] == ["prefill", "decode"]
        (model,) = project.results()["models"]
        assert (model["backend"], model["details"]["base_url"]) == ("openai", url)
        sent = [tuple(body["prompt"]) for body in behaviour.requests if len(body["prompt"]) == 8]
        assert len(set(sent[1:])) == len(sent) - 1 == 2 * len(cell["trials"])


def test_a_server_that_makes_other_tokens_fails_its_cell(project: Any) -> None:
    with serving() as (url, behaviour):
        behaviour.fail, behaviour.fail_from = "short", 20
        result = served(project, url)
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*was asked for 8 + 4 tokens, and the server reports 8 + 3*"])
        (cell,) = project.results()["cells"]
        assert "reports 8 + 3" in cell["error"]
        assert len(cell["trials"]) > 1  # what was measured before is kept


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (["--llm-energy-base-url=http://127.0.0.1:9"], "*cannot be reached*Is the server running*"),
        (["--llm-energy-base-url=nowhere at all:x"], "*no address of a server*"),
        (
            ["--llm-energy-dtype=int3"],
            "*--llm-energy-dtype: 'int3' is not one of bfloat16, float16, float32*",
        ),
        (["--llm-energy-prompts=nothing.txt"], "*nothing.txt: cannot be read*"),
        (["--llm-energy-phases=-1"], "*--llm-energy-phases: '-1' is not a whole number*"),
    ],
)
def test_a_wrong_engine_ends_before_anything_is_measured(
    project: Any, server: list[str], message: str
) -> None:
    result = project.run(project.bench(), "--models=served", "--llm-energy-meters=estimate", *server)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (result.stderr if result.stderr.str() else result.stdout).fnmatch_lines([message])


@pytest.fixture(scope="session")
def torch_stays() -> None:
    """Import what loads models before pytester notes which modules to keep: torch cannot be loaded twice."""
    pytest.importorskip("torch", reason="the models extra is not installed")
    from pytest_llmenergy.backends import open_backend

    for model in ("tiny-llama", "tiny-mistral"):
        open_backend(device="cpu", threads=1).load(model).close()


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (["--llm-energy-device=tpu"], "*there is no device 'tpu'; take auto, all, cpu, cuda or cuda:0.*"),
        (["--llm-energy-device=cuda:99"], "*there is no device 'cuda:99' on this machine; there is *"),
        (["--llm-energy-tensor-parallel=3"], "*tiny-llama: num_attention_heads is 4, which 3 processes *"),
        (["--llm-energy-prompts=mine.txt"], "*tiny-llama has random weights and no tokenizer*"),
    ],
    ids=["no device", "no such GPU", "heads that do not divide", "prompts for random weights"],
)
@pytest.mark.usefixtures("torch_stays")
def test_what_no_cell_could_be_measured_with_is_said_once_at_the_start(
    project: Any, switches: list[str], message: str
) -> None:
    """One message and no test run, in place of one failure a cell."""
    (project.pytester.path / "mine.txt").write_text("What is the capital of France?")
    result = project.run(project.bench(), "--llm-energy-meters=estimate", "--models=tiny-llama", *switches)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert len(result.stderr.lines) == 2
    result.assert_outcomes()
    assert not (project.pytester.path / "out").exists()


@pytest.mark.usefixtures("torch_stays")
def test_a_cell_without_room_is_kept_with_its_sizes_and_the_run_goes_on(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that does not fit is looked for once; its cells are recorded; the next model is measured."""
    from pytest_llmenergy.backends import placement

    rooms = [100_000, 10**9]
    monkeypatch.setattr(placement, "free_room", lambda: placement.Room(gpus_b={}, cpu_b=rooms.pop(0)))
    result = project.run(
        project.bench(), "--llm-energy-meters=estimate", "--models=tiny-llama,tiny-mistral", *QUICK[1:],
        "--llm-energy-tokens-in=4,8",
    )  # fmt: skip
    assert result.ret == 0
    cells = {(cell["model"], cell["tokens_in"]): cell for cell in project.results()["cells"]}
    for tokens_in in (4, 8):
        lost = cells["tiny-llama", tokens_in]
        assert lost["stop"]["reason"] == "does-not-fit"
        assert (lost["details"]["needed_b"], lost["details"]["available_b"]) == (4 * 164_672, 100_000)
        found = cells["tiny-mistral", tokens_in]
        assert found["error"] is None
        assert found["details"]["flops"] > 0
    result.stdout.fnmatch_lines(["*no room*", "*tiny-llama*does not fit: its weights take"])
    result.assert_outcomes(passed=2, skipped=2)


def test_an_adopted_process_is_metered_as_our_own() -> None:
    """A server that we did not start counts while its model is loaded, and no process counts twice."""
    proc, own = Path("/proc"), os.getpid()
    try:
        adopt([os.getppid()])
        tree = list(descendants(proc, own))
        assert os.getppid() in tree
        assert len(tree) == len(set(tree))
    finally:
        adopt(())
    assert os.getppid() not in list(descendants(proc, own))
