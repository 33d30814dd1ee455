"""`pytest bench/ --llm-energy`: the main job, end to end on a machine whose energies are known."""

from __future__ import annotations

import json
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

QUIET = ("-pno:hypothesispytest", "-pno:benchmark", "-pno:codspeed")


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


def test_without_a_sweep_no_model_is_named_and_the_folder_is_the_tests(project: Any) -> None:
    """Callables belong to no model: neither the header nor the results claim the default one."""
    callables = project.pytester.makepyfile(
        """
        def test_callable(energy):
            energy(lambda: None)
        """
    )
    switches = ("--llm-energy", "--llm-energy-meters=estimate")
    result = project.run(*switches, measuring=False)
    result.stdout.fnmatch_lines(
        ["collected 1 item", "llm-energy: what the tests ask for, results in reports/tests"]
    )
    assert "tiny-llama" not in result.stdout.str()
    document = project.results("reports/tests")
    assert (document["name"], document["settings"]["models"]) == ("tests", [])
    assert [window["label"] for window in document["windows"]] == ["test_callable"]
    # With sweeps beside it, or a model that was named, the campaign is the model's.
    result = project.run(project.bench(), ".", *switches, "--collect-only", measuring=False)
    result.stdout.fnmatch_lines(["*results in reports/tiny-llama-quick"])
    result = project.run(callables, *switches, "--models=mistral-7b", "--collect-only", measuring=False)
    result.stdout.fnmatch_lines(["llm-energy: mistral-7b", "*results in reports/mistral-7b-quick"])


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


@pytest.mark.parametrize("switches", [("-d", "--tx=2*popen"), ("--tx=popen",), ("--dist=load",)])
def test_other_processes_are_refused_however_they_are_asked_for(
    project: Any, switches: tuple[str, ...]
) -> None:
    """Side by side, tests would meter each other; without -n, pytest-xdist's controller waits for ever."""
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    result = project.run(project.bench(), "--models", "m-one", *switches)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *Leave out -n (pytest-xdist), --tx, --dist and -d."])
    assert not (project.pytester.path / "out").exists()


def apart(project: Any, *args: str) -> pytest.RunResult:
    """Run the token grid in a process of its own, which signals may end."""
    switches = ("--llm-energy", "--llm-energy-meters=replay:replay.toml", "--llm-energy-results=out")
    bench = project.bench() + "/test_token_grid.py"
    result: pytest.RunResult = project.pytester.runpytest_subprocess(
        "-pno:cacheprovider", *QUIET, *switches, "--models=m-one", bench, *args
    )
    return result


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_at_the_very_end_does_not_lose_the_document(project: Any, name: str) -> None:
    """The campaign may measure idle power for seconds before it is closed."""
    project.pytester.makeconftest(
        f"""
        import os, signal
        from pytest_llmenergy.campaign.runner import Runner
        finish = Runner.finish
        def signalled(self, **kwargs):
            os.kill(os.getpid(), signal.{name})
            return finish(self, **kwargs)
        Runner.finish = signalled
        def pytest_unconfigure():
            print("HANDLER", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        """
    )
    result = apart(project)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["results: *results.json", "HANDLER True"])
    assert len(project.results()["cells"]) == 6


def test_who_asked_in_a_test_does_not_break_into_the_writing_by_asking_again(project: Any) -> None:
    """A batch system sends what the user has sent already: the document is written all the same."""
    project.pytester.makeconftest(
        """
        import os, signal
        from pytest_llmenergy.campaign.runner import Runner
        finish = Runner.finish
        def signalled(self, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return finish(self, **kwargs)
        Runner.finish = signalled
        def pytest_runtest_logreport(report):
            if report.when == "call":
                os.kill(os.getpid(), signal.SIGINT)
        """
    )
    result = apart(project)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    document = project.results()
    assert (document["complete"], len(document["cells"])) == (False, 1)


def test_whoever_asks_twice_at_the_end_is_not_kept_waiting(project: Any) -> None:
    """One message, which says where everything is."""
    project.pytester.makeconftest(
        """
        import os, signal
        from pytest_llmenergy.campaign.runner import Runner
        def stuck(self, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")
        Runner.finish = stuck
        """
    )
    result = apart(project)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["ERROR: interrupted at the end: the journal holds all that was measured."])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert project.journal().read_text().count('"event":"cell"') == 6


@pytest.mark.parametrize(
    "content",
    [
        """
        @pytest.fixture
        def model():
            interrupted()
        def test_first(energy, model):
            pass
        """,
        """
        class TestFirst(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def given(self, energy):
                pass
            def test_first(self):
                interrupted()
        """,
        """
        def test_first(energy):
            with energy.window("long"):
                interrupted()
        """,
    ],
    ids=["a fixture that loads a model", "a unittest", "a window"],
)
def test_an_interrupt_ends_at_once_what_a_user_waits_for(project: Any, content: str) -> None:
    """Once is enough, wherever the time goes; nothing after it runs."""
    head = """
        import os, pathlib, signal, unittest
        import pytest
        def interrupted():
            os.kill(os.getpid(), signal.SIGINT)
            pathlib.Path("reached").touch()
    """
    test = project.pytester.makepyfile(textwrap.dedent(head) + textwrap.dedent(content))
    switches = ("-pno:cacheprovider", *QUIET, "--llm-energy", "--llm-energy-meters=estimate")
    result = project.pytester.runpytest_subprocess(*switches, "--llm-energy-results=out", test)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    assert not (project.pytester.path / "reached").exists()
    if "window" in content:
        (window,) = project.results()["windows"]
        assert window["error"] == "interrupted"


def test_an_interrupt_while_the_campaign_is_opened_leaves_the_former_one_in_its_place(project: Any) -> None:
    """Where a test asks for the fixture as it runs, the campaign begins in the midst of the test."""
    test = project.pytester.makepyfile(
        """
        def test_first(request):
            request.getfixturevalue("energy")(int)
        """
    )
    switches = ("-pno:cacheprovider", *QUIET, "--llm-energy", "--llm-energy-meters=replay:replay.toml")
    args = (*switches, "--llm-energy-results=out", test)
    assert project.pytester.runpytest_subprocess(*args).ret == 0
    former = project.results()
    project.pytester.makeconftest(
        """
        import os, signal
        from pytest_llmenergy.campaign import runner
        open_folder = runner.open_folder
        def interrupted(*args):
            folder = open_folder(*args)
            os.kill(os.getpid(), signal.SIGINT)
            return folder
        runner.open_folder = interrupted
        """
    )
    assert project.pytester.runpytest_subprocess(*args).ret == pytest.ExitCode.INTERRUPTED
    assert project.results() == former
    assert not (project.pytester.path / "out" / "former-1").exists()


def test_pytest_may_run_in_any_thread(project: Any) -> None:
    """Only the main one may have handlers of signals."""
    with ThreadPoolExecutor(1) as other:
        result = other.submit(project.run, project.bench(), "--models", "m-one").result()
    result.assert_outcomes(passed=11)
    assert project.results()["complete"] is True


def test_an_interrupted_cell_is_shown_as_interrupted(project: Any) -> None:
    """Not as failed, and not left out."""
    project.pytester.makepyfile(
        """
        import pytest
        from pytest_llmenergy.backends.replay import ReplayLoadedModel
        def test_one(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=4)
        def test_two(energy, monkeypatch):
            def stop(self, request, **kwargs):
                raise KeyboardInterrupt
            monkeypatch.setattr(ReplayLoadedModel, "generate", stop)
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    result = project.run("--models", "m-one")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["[[]1/1[]] m-one *8->4 * 5 x *", "[[]2/2[]] m-one *8->8  interrupted"])
    assert "failed" not in result.stdout.str().split("energy of LLM inference")[0]


def test_sweeps_that_share_cells_leave_one_line_a_cell_and_nothing_between(project: Any) -> None:
    """Eleven tests, six lines."""
    result = project.run(project.bench(), "--models", "m-one")
    lines = [line.strip() for line in result.stdout.lines]
    first = next(n for n, line in enumerate(lines) if line.startswith("[1/6]"))
    assert [line[:5] for line in lines[first : first + 6]] == [f"[{n}/6]" for n in range(1, 7)]


def test_a_test_without_a_line_of_its_own_has_its_dot(project: Any) -> None:
    """A callable, a window, a cell that was measured before; lines and dots do not share a line."""
    project.pytester.makepyfile(
        """
        def test_call(energy):
            energy(int)
        def test_block(energy):
            with energy.window("w"):
                pass
        def test_cell(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        def test_cell_again(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["*..", "loading m-one ...", "[[]1/1[]] m-one *", ". *[[]100%[]]"], consecutive=True
    )


def test_no_time_is_promised_from_cells_that_failed(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not fit takes no time at all, which says nothing of the next one."""
    from pytest_llmenergy.backends.replay import ReplayBackend
    from pytest_llmenergy.errors import DoesNotFitError

    load = ReplayBackend.load

    def loading(self: ReplayBackend, model: str) -> Any:
        if model == "m-two":
            raise DoesNotFitError(f"{model} does not fit.")
        return load(self, model)

    monkeypatch.setattr(ReplayBackend, "load", loading)
    result = project.run(project.bench(), "--models", "m-two,m-one")
    result.stdout.fnmatch_lines(["[[] 6/12[]] m-two * m-two does not fit.", "[[] 7/12[]] m-one *"])
    result.stdout.no_fnmatch_line("*0 s left*")


def test_a_terminal_shows_dots_after_the_line_that_was_written_over(project: Any) -> None:
    """On a terminal, what is measured now is shown and taken away again."""
    project.pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(trylast=True)
        def pytest_configure(config):
            config.pluginmanager.getplugin("terminalreporter")._tw._file.isatty = lambda: True
            config.pluginmanager.getplugin("terminalreporter").isatty = lambda: True
        """
    )
    project.pytester.makepyfile(
        """
        def test_call(energy):
            energy(int)
        def test_cell(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    result = project.run("--models", "m-one", "--color=no")
    result.assert_outcomes(passed=2)
    writes = result.outlines  # each from one carriage return or line feed to the next
    dot = next(n for n, text in enumerate(writes) if text.startswith("."))
    line = next(n for n, text in enumerate(writes) if text.startswith("[1/1] m-one") and " 5 x " in text)
    assert any(text.startswith("measuring  trial") for text in writes[:dot])
    assert (writes[dot - 1].strip(), writes[line - 1].strip()) == ("", "")
    after = next(text for text in writes[dot + 1 :] if text.strip())
    assert (writes[dot], after.split()[0]) == (".", "loading")


def test_collecting_the_bench_files_without_the_switch_imports_nothing_heavy(project: Any) -> None:
    """They stand in a project's own test run, which pays nothing for them."""
    names = ("torch", "transformers", "scipy", "pandas", "statsmodels", "numpy")
    light = ("msgspec", "pynvml", "pyJoules", "rich", "psutil")
    project.pytester.makeconftest(
        f"""
        import sys
        def pytest_unconfigure():
            print("HEAVY", [name for name in {(*names, *light)!r} if name in sys.modules])
        """
    )
    others = (
        "cacheprovider",
        "benchmark",
        "codspeed",
        "hypothesispytest",
        "xdist",
        "anyio",
        "sybil",
        "randomly",
    )
    switches = [f"-pno:{name}" for name in others]
    result = project.pytester.runpytest_subprocess(project.bench(), *switches)
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["HEAVY [[][]]"])


def test_a_run_that_measures_nothing_leaves_the_former_results_where_they_were(project: Any) -> None:
    """A baseline that is not there, or a model that cannot be loaded, costs nobody their results."""
    project.run(project.bench(), "--models", "m-one")
    before = (project.pytester.path / "out" / "results.json").read_bytes()
    result = project.run(project.bench(), "--models", "m-one", "--llm-energy-baseline", "nope")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (project.pytester.path / "out" / "results.json").read_bytes() == before
    assert not list((project.pytester.path / "out").glob("former-*"))
    project.pytester.makepyfile("def test_none(energy): raise ValueError")
    result = project.run("--models", "m-one", "-k", "test_none")
    kept = "a former campaign was kept in out/former-1"
    result.stdout.fnmatch_lines([kept, "the former campaign is back in out"])


def test_an_interrupt_while_the_meters_are_opened_measures_nothing(project: Any) -> None:
    """The self-check takes seconds; who asked for the end in it is heard as the first cell begins."""
    project.pytester.makeconftest(
        """
        import os, signal
        from pytest_llmenergy.campaign.runner import Runner
        begin = Runner.__init__
        def signalled(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            begin(self, *args, **kwargs)
        Runner.__init__ = signalled
        """
    )
    result = apart(project)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["llm-energy: nothing was measured."])
    assert not (project.pytester.path / "out" / "results.json").exists()
