"""The `energy` fixture in a user's own test file, and the budgets of its marker."""

from __future__ import annotations

from typing import Any

import pytest


def test_any_callable_is_measured_until_the_rule_stops(project: Any) -> None:
    """Warm-up, trials, a record with energy per token, and a window in the results."""
    project.pytester.makepyfile(
        """
        def test_mine(energy):
            calls = []
            def generate(n, *, flag):
                assert (n, flag) == (7, True)
                calls.append(n)
            record = energy(generate, 7, flag=True, tokens_out=40)
            assert len(calls) == 6
            assert record.stop.trials == 5
            assert record.summary.energy_j_per_token == 0.0
        """
    )
    project.run("--models", "m-one", "--llm-energy-ci-rel=0").assert_outcomes(passed=1)
    (window,) = project.results()["windows"]
    assert (window["label"], window["tokens_generated"]) == ("test_mine", 40)
    assert [trial["warmup"] for trial in window["trials"]] == [True] + [False] * 5


def test_a_block_is_metered_once_and_nests(project: Any) -> None:
    """An outer window holds the inner one's energy."""
    project.pytester.makepyfile(
        """
        def test_mine(energy):
            with energy.window("outer") as outer:
                energy.cell(model="m-one", tokens_in=8, tokens_out=8)
                with energy.window("inner") as inner:
                    energy.cell(model="m-one", tokens_in=8, tokens_out=4)
            def total(window):
                return sum(part.energy_j for part in window.domains)
            assert total(outer) > total(inner) > 0
            assert outer.runtime_s > inner.runtime_s > 0
        """
    )
    project.run("--models", "m-one").assert_outcomes(passed=1)
    assert [window["label"] for window in project.results()["windows"]] == ["inner", "outer"]


def test_a_block_that_raises_is_metered_all_the_same(project: Any) -> None:
    """The test fails with its own error, and its window is kept as one that was cut short."""
    project.pytester.makepyfile(
        """
        def test_mine(energy):
            with energy.window("breaks"):
                raise RuntimeError("mine")
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*RuntimeError: mine"])
    (window,) = project.results()["windows"]
    assert (window["runtime_s"] is None, window["error"]) == (False, "RuntimeError: mine")
    result.stdout.fnmatch_lines(["breaks: RuntimeError: mine"])


@pytest.mark.parametrize(
    ("marker", "outcome", "message"),
    [
        ("max_j_per_token=10", {"passed": 1}, None),
        (
            "max_j_per_token=0.01",
            {"failed": 1},
            "*m-one in 8 out 8 batch 32 no-kv: 193 mJ ± * per generated token is over the budget of 10.0 mJ",
        ),
        (
            "max_energy_j=1",
            {"failed": 1},
            "*m-one in 8 out 8 batch 32 no-kv: 49.4 J ± * per call is over the budget of 1.00 J",
        ),
    ],
)
def test_a_broken_budget_fails_the_test_with_figure_spread_and_budget(
    project: Any, marker: str, outcome: dict[str, int], message: str | None
) -> None:
    """2.5 J x 8 steps and 0.01 J x 92 passes x 32 are 49.4 J, 193 mJ for each of 256 tokens."""
    project.pytester.makepyfile(
        f"""
        import pytest
        @pytest.mark.llmenergy({marker})
        def test_mine(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(**outcome)
    if message is not None:
        result.stdout.fnmatch_lines([message])


def test_an_estimate_breaks_a_budget_and_says_that_it_is_one(project: Any) -> None:
    """A guess over the budget is a warning worth failing for, as long as it is named."""
    project.replay('estimated = ["cpu:package-0"]')
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.llmenergy(max_j_per_token=0.01)
        def test_mine(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    project.run("--models", "m-one").stdout.fnmatch_lines(["*(an estimate, not a measurement)"])


def test_a_budget_that_nothing_was_measured_for_fails(project: Any) -> None:
    """No check passes on absence."""
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.llmenergy(max_energy_j=1)
        def test_mine(energy):
            pass
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*has an energy budget but measured nothing*"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (
            "max_j=1",
            "@pytest.mark.llmenergy takes max_energy_j, max_j_per_token, sweep, tolerance, not max_j",
        ),
        (
            "1",
            "llmenergy takes max_energy_j, max_j_per_token, sweep, tolerance, not positional arguments",
        ),
        ("max_energy_j=-1", "@pytest.mark.llmenergy: max_energy_j must be a positive number, not -1"),
        ("max_energy_j='2 J'", "@pytest.mark.llmenergy: max_energy_j must be a positive number, not '2 J'"),
        (
            "max_j_per_token=True",
            "@pytest.mark.llmenergy: max_j_per_token must be a positive number, not True",
        ),
        ("tolerance=True", "@pytest.mark.llmenergy: tolerance must be a share such as '10%', not True"),
        (
            "sweep='rows'",
            "@pytest.mark.llmenergy(sweep=...): unknown sweep 'rows'; there are input, output, grid",
        ),
    ],
)
def test_a_marker_that_makes_no_sense_ends_in_one_message(project: Any, marker: str, message: str) -> None:
    """Unknown names and values are refused at collection, before anything is measured."""
    project.pytester.makepyfile(
        f"""
        import pytest
        @pytest.mark.llmenergy({marker})
        def test_mine(energy, model="m-one", tokens_in=8, tokens_out=8):
            energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out)
        """
    )
    result = project.run("--models", "m-one")
    said = result.stdout.str() + result.stderr.str()
    # An error of the hook that makes parameters is a collection error to pytest.
    in_collection = marker.startswith("sweep")
    assert result.ret == (pytest.ExitCode.INTERRUPTED if in_collection else pytest.ExitCode.USAGE_ERROR)
    assert said.count(message) == 1
    assert "INTERNALERROR" not in said
    assert "Traceback" not in said
    assert "session.py" not in said  # nor a traceback in pytest's own style
    assert not (project.pytester.path / "out").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("model='m-three', tokens_in=8, tokens_out=8", "*the replay file has no model 'm-three'*"),
        ("model='m-one', tokens_in=-8, tokens_out=8", "*must be a whole number of at least 1, not -8*"),
        ("model='m-one', tokens_in=90, tokens_out=11", "*has room for 100 tokens, the cell needs 101*"),
    ],
)
def test_a_cell_that_cannot_be_measured_fails_with_one_message(project: Any, call: str, message: str) -> None:
    """No traceback; the other tests run."""
    project.pytester.makepyfile(
        f"""
        def test_wrong(energy):
            energy.cell({call})
        def test_right(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert len(project.results()["cells"]) == 1


def test_junit_carries_the_figures(project: Any) -> None:
    """Properties of the test case."""
    project.run(project.bench(), "--models", "m-one", "--junit-xml=junit.xml")
    junit = (project.pytester.path / "junit.xml").read_text()
    assert 'name="llmenergy.energy_j_per_token"' in junit
    assert 'name="llmenergy.provenance" value="measured"' in junit


def test_a_cell_whose_call_raises_keeps_what_was_measured_and_the_others_run(project: Any) -> None:
    """The error and the trials before it are in the results; asking again does not measure again."""
    project.pytester.makepyfile(
        """
        import pytest
        from pytest_llmenergy.backends.replay import ReplayLoadedModel
        original = ReplayLoadedModel.generate
        calls = []
        def breaking(self, request, **kwargs):
            calls.append(request)
            if len(calls) == 5:
                raise RuntimeError("the engine died")
            return original(self, request, **kwargs)
        @pytest.fixture(autouse=True)
        def engine(monkeypatch):
            monkeypatch.setattr(ReplayLoadedModel, "generate", breaking)
        def test_first(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        def test_again(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        def test_other(energy):
            energy.cell(model="m-one", tokens_in=8, tokens_out=4)
        """
    )
    project.run("--models", "m-one").assert_outcomes(failed=2, passed=1)
    broken, whole = project.results()["cells"]
    assert (broken["error"], broken["stop"]["reason"]) == ("RuntimeError: the engine died", "failed")
    assert len(broken["trials"]) == 4
    assert whole["error"] is None


@pytest.mark.parametrize("value", ["'short'", "None", "{}", "[8]", "True", "8.5"])
@pytest.mark.parametrize("name", ["model", "tokens_in", "tokens_out"])
def test_a_users_own_parameters_of_these_names_are_theirs(project: Any, name: str, value: str) -> None:
    """A label, nothing, a dictionary: the test runs, for it alone knows what it means by them."""
    given = {"model": "'m-one'", "tokens_in": "8", "tokens_out": "8", name: value}
    project.pytester.makepyfile(
        f"""
        import pytest
        @pytest.mark.parametrize("model, tokens_in, tokens_out", [({", ".join(given.values())})])
        def test_mine(energy, model, tokens_in, tokens_out):
            assert {name} == {value}
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        """
    )
    project.run("--models", "m-one").assert_outcomes(passed=1)


def test_a_test_can_ask_for_the_fixture_as_it_runs(project: Any) -> None:
    """By `getfixturevalue`, where no test names it: the campaign opens then, and the budget holds."""
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.llmenergy(max_energy_j=1)
        def test_over(request):
            energy = request.getfixturevalue("energy")
            energy.cell(model="m-one", tokens_in=8, tokens_out=8)
        def test_next(request):
            request.getfixturevalue("energy").cell(model="m-one", tokens_in=8, tokens_out=4)
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["meter replay (measured): *", "*49.4 J ± * per call is over the budget*"])
    assert len(project.results()["cells"]) == 2


def test_a_campaign_that_cannot_be_opened_as_a_test_runs_ends_the_session(project: Any) -> None:
    """With one message, as at its start."""
    project.pytester.makepyfile(
        """
        def test_mine(request):
            request.getfixturevalue("energy")
        def test_never():
            raise AssertionError
        """
    )
    result = project.run("--models", "m-three")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes()
    result.stdout.fnmatch_lines(["*Exit: the replay file has no model 'm-three'; it has m-one, m-two.*"])


def test_a_users_own_batch_sizes_and_caches_reach_the_cell(project: Any) -> None:
    """Each its own cell, and each counted in the progress."""
    project.pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("kv_cache", [True, False])
        @pytest.mark.parametrize("batch_size", [1, 4])
        @pytest.mark.parametrize("model, tokens_in, tokens_out", [("m-one", 8, 8), ("m-one", 16, 8)])
        def test_mine(energy, model, tokens_in, tokens_out, batch_size, kv_cache):
            record = energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out,
                                 batch_size=batch_size, kv_cache=kv_cache)
            assert (record.batch_size, record.kv_cache) == (batch_size, kv_cache)
            assert record.summary.energy_j is not None
        """
    )
    result = project.run("--models", "m-one")
    result.assert_outcomes(passed=8)
    found = {(cell["tokens_in"], cell["batch_size"], cell["kv_cache"]) for cell in project.results()["cells"]}
    assert found == {(i, batch, kv) for i in (8, 16) for batch in (1, 4) for kv in (True, False)}
    for cell in project.results()["cells"]:
        assert cell["trials"][-1]["tokens_generated"] == cell["batch_size"] * 8
    result.stdout.fnmatch_lines([f"[[]{n}/8[]] m-one*" for n in range(1, 9)], consecutive=True)


def test_what_cannot_be_called_is_refused_in_one_line(project: Any) -> None:
    """`energy(3)` is a slip, not an error of the plugin."""
    project.pytester.makepyfile("def test_mine(energy):\n    energy(3)\n")
    result = project.run("--models", "m-one")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["energy(...) measures a callable, not 3."])
    result.stdout.no_fnmatch_line("*TypeError*")


def test_a_callable_that_raises_is_shown_without_our_frames(project: Any) -> None:
    """The test's line, the callable's line, and nothing between."""
    project.pytester.makepyfile(
        """
        def boom(x):
            raise ValueError("mine")
        def test_mine(energy):
            energy(boom, 3)
        """
    )
    result = project.run("--models", "m-one")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*ValueError: mine"])
    for ours in ("fixture.py", "windows.py", "trials.py"):
        assert ours not in result.stdout.str()
