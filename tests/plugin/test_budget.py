"""What a test may cost, by its `llmenergy` marker."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pytest_llmenergy.meters.replay import ReplayMeter
from pytest_llmenergy.records import Provenance
from pytest_llmenergy.units import format_energy

M_ONE = ("--models", "m-one")
CELL = 'energy.cell(model="m-one", tokens_in=8, tokens_out=8)'  # 49.4 J, 193 mJ a token
WITHOUT_CPU = {"energy_j": None, "provenance": Provenance.UNAVAILABLE, "reason": "no reading"}


def written(project: Any, source: str) -> Any:
    """Run a test file that imports pytest."""
    project.pytester.makepyfile("import pytest\n" + source)
    return project.run(*M_ONE)


def without(monkeypatch: pytest.MonkeyPatch, domain: str, **changes: Any) -> None:
    """The simulated machine's meter loses a domain."""
    original = ReplayMeter.end

    def end(self: ReplayMeter, mark: dict[str, float]) -> Any:
        parts = original(self, mark)
        return tuple(
            msgspec.structs.replace(part, **{**WITHOUT_CPU, **changes}) if part.domain == domain else part
            for part in parts
        )

    monkeypatch.setattr(ReplayMeter, "end", end)


def test_a_tests_own_marker_adds_to_its_classs(project: Any) -> None:
    """A tolerance or another limit on the function does not lift the limit of the class."""
    result = written(
        project,
        f"""
@pytest.mark.llmenergy(max_energy_j=1)
class TestMine:
    @pytest.mark.llmenergy(max_j_per_token=10)
    def test_other_limit(self, energy):
        {CELL}
    def test_none_of_its_own(self, energy):
        {CELL}
    @pytest.mark.llmenergy(max_energy_j=100)
    def test_same_limit(self, energy):
        {CELL}
""",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["FAILED *test_other_limit*", "FAILED *test_none_of_its_own*"])


def test_the_nearest_of_markers_is_the_parameter_sets_then_the_subclasss(project: Any) -> None:
    """By pytest itself they are listed the other way round."""
    result = written(
        project,
        f"""
class Base:
    pytestmark = pytest.mark.llmenergy(max_energy_j=1)
@pytest.mark.llmenergy(max_energy_j=100)
class TestMine(Base):
    def test_subclass_wins(self, energy):
        {CELL}
    @pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.llmenergy(max_energy_j=2))])
    @pytest.mark.llmenergy(max_energy_j=100)
    def test_set_wins(self, energy, n):
        {CELL}
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*over the budget of 2.00 J", "FAILED *test_set_wins*"])


def test_the_sweep_of_a_class_stands_beside_the_budget_of_its_test(project: Any) -> None:
    """The nearest marker that states a sweep, not the nearest marker."""
    source = """
@pytest.mark.llmenergy(sweep="output")
class TestMine:
    @pytest.mark.llmenergy(max_energy_j=1000)
    def test_it(self, energy, model, tokens_in, tokens_out):
        energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out)
"""
    written(project, source).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    "source",
    [
        "def test_mine():\n    pass",
        "class TestMine(__import__('unittest').TestCase):\n    def test_it(self): pass",
    ],
)
def test_a_budget_without_the_fixture_fails(project: Any, source: str) -> None:
    """It cannot hold: nothing was measured, by a test of whatever kind."""
    result = written(project, f"@pytest.mark.llmenergy(max_energy_j=1)\n{source}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*has an energy budget but measured nothing*"])


def test_a_budget_without_the_fixture_is_an_ordinary_test_when_nothing_is_measured(project: Any) -> None:
    """Budgets are checked under --llm-energy alone."""
    project.pytester.makepyfile(
        "import pytest\n@pytest.mark.llmenergy(max_energy_j=1)\ndef test_mine():\n    pass"
    )
    project.run(measuring=False).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("max_j=1", "takes max_energy_j, max_j_per_token, sweep, tolerance, not max_j"),
        ("max_energy_j=-1", "max_energy_j must be a positive number, not -1"),
        ("max_energy_j=float('inf')", "max_energy_j must be a positive number, not inf"),
        ("tolerance='much'", "tolerance must be a share such as '10%', not 'much'"),
    ],
)
@pytest.mark.parametrize("nearer", ["", "@pytest.mark.llmenergy(max_energy_j=9, tolerance=0.1)\n"])
def test_every_marker_is_looked_at_before_anything_is_measured(
    project: Any, argument: str, message: str, nearer: str
) -> None:
    """Also one on a test without the fixture, also one that a nearer one outdoes."""
    result = written(
        project, f"pytestmark = pytest.mark.llmenergy({argument})\n{nearer}def test_mine():\n    pass"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_mine: @pytest.mark.llmenergy*{message}"])


@pytest.mark.parametrize(
    ("marker", "outcome"),
    [("max_energy_j=1", {"failed": 1}), ("tolerance=0.1", {"skipped": 1})],
)
def test_a_cell_that_does_not_fit_breaks_a_budget_and_skips_a_test_without(
    project: Any, monkeypatch: pytest.MonkeyPatch, marker: str, outcome: dict[str, int]
) -> None:
    """No check passes on absence."""
    from pytest_llmenergy.backends.replay import ReplayBackend
    from pytest_llmenergy.errors import DoesNotFitError

    def load(self: ReplayBackend, model: str) -> Any:
        raise DoesNotFitError(f"{model} does not fit.")

    monkeypatch.setattr(ReplayBackend, "load", load)
    result = written(project, f"@pytest.mark.llmenergy({marker})\ndef test_mine(energy):\n    {CELL}")
    result.assert_outcomes(**outcome)
    if "failed" in outcome:
        result.stdout.fnmatch_lines(["m-one does not fit. Its budget cannot be checked."])


WINDOW = f"""
@pytest.mark.llmenergy(max_energy_j={{limit}})
def test_mine(energy):
    with energy.window("all calls"):
        {CELL}
"""


def test_a_window_counts_for_the_budget(project: Any) -> None:
    """Seven calls and the cell's own record: the window's is named as one."""
    result = written(project, WINDOW.format(limit=100))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["all calls: 346 J in this window is over the budget of 100 J"])
    result.stdout.no_fnmatch_line("*per call*")


def test_a_window_within_the_budget_passes(project: Any) -> None:
    """The counterpart: it is the energy that counts, not the window."""
    written(project, WINDOW.format(limit=400)).assert_outcomes(passed=1)


def test_an_estimated_window_breaks_a_budget_and_says_that_it_is_one(project: Any) -> None:
    """As an estimated cell does."""
    project.replay('estimated = ["cpu:package-0"]')
    result = written(project, WINDOW.format(limit=100))
    result.stdout.fnmatch_lines(
        ["all calls: 346 J in this window is over the budget of 100 J (an estimate, not a measurement)"]
    )


def test_a_window_of_unknown_cpu_energy_is_held_by_its_gpus(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so."""
    without(monkeypatch, "cpu:package-0", provenance=Provenance.MEASURED)
    written(project, WINDOW.format(limit=100)).stdout.fnmatch_lines(
        ["all calls: 318 J in this window is over the budget of 100 J (the energy of the GPU alone)"]
    )


@pytest.mark.parametrize(("limit", "outcome"), [(1, {"failed": 1}), (46, {"passed": 1})])
def test_a_cell_of_unknown_cpu_energy_is_held_by_its_gpus_for_both_limits(
    project: Any, monkeypatch: pytest.MonkeyPatch, limit: int, outcome: dict[str, int]
) -> None:
    """On one basis: 45.4 J a call, 178 mJ a token."""
    without(monkeypatch, "cpu:package-0", provenance=Provenance.MEASURED)
    result = written(
        project,
        f"@pytest.mark.llmenergy(max_energy_j={limit}, max_j_per_token={limit / 100})\n"
        f"def test_mine(energy):\n    {CELL}",
    )
    result.assert_outcomes(**outcome)
    if "failed" in outcome:
        result.stdout.fnmatch_lines(
            [
                "m-one *: 178 mJ ± * per generated token is over * (the energy of the GPU alone)",
                "m-one *: 45.4 J ± * per call is over * (the energy of the GPU alone)",
            ]
        )


def test_unknown_energy_breaks_a_budget(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a window that no meter could read."""
    for domain in ("gpu:0", "cpu:package-0"):
        without(monkeypatch, domain)
    result = written(
        project,
        "@pytest.mark.llmenergy(max_energy_j=1e9)\n"
        "def test_mine(energy):\n    with energy.window('mine'):\n        pass",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["mine: energy is unknown, so its budget cannot be checked"])


def test_unknown_energy_per_token_breaks_a_budget(project: Any) -> None:
    """Of a call that nobody counted the tokens of."""
    result = written(
        project,
        "@pytest.mark.llmenergy(max_j_per_token=1e9)\ndef test_mine(energy):\n    energy(int, label='mine')",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["mine: energy per token is unknown (no tokens are known: pass tokens_out=), so its budget cannot *"]
    )


def test_the_interval_is_of_what_it_stands_beside(project: Any) -> None:
    """Of a token beside a token's energy, of a call (256 tokens) beside a call's."""
    project.replay("[noise]\ntrial = 0.05")
    result = written(
        project,
        f"@pytest.mark.llmenergy(max_energy_j=1, max_j_per_token=0.01)\ndef test_mine(energy):\n    {CELL}",
    )
    summary = project.results()["cells"][0]["summary"]
    half_width_j = summary["energy_j_per_token_half_width"]
    assert half_width_j > 0
    result.stdout.fnmatch_lines(
        [
            f"*J ± {format_energy(half_width_j)} per generated token is over the budget of 10.0 mJ",
            f"*J ± {format_energy(256 * half_width_j)} per call is over the budget of 1.00 J",
        ]
    )
