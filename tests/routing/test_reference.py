"""The paper's own program, by PuLP."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.operators import Limits, plan_within
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.reference import binary_program, reference_plan
from pytest_llmenergy.routing.solve import InfeasibleError
from pytest_llmenergy.routing.workload import workload_of


@pytest.fixture
def small(hosts):
    queries = workload_of([5, 5, 9, 20, 3, 5], [10, 10, 300, 40, 2, 77])
    return make_problem(hosts, queries, share_bounds([h.name for h in hosts], 6))


@pytest.mark.parametrize("solver", ["cbc", "highs"])
@pytest.mark.parametrize("zeta", [0.0, 0.2, 0.5, 1.0])
def test_binary_program_and_prices_agree(small, solver, zeta):
    """The same objective, and the prices' bound proves PuLP's plan."""
    reference, ours = reference_plan(small, zeta, solver=solver), plan_at(small, zeta)
    assert reference.solution.objective == pytest.approx(ours.solution.objective, abs=1e-9)
    assert abs(reference.solution.gap) < 1e-9
    assert reference.solution.status == "optimal"
    assert (reference.solution.flow.sum(axis=0) == small.workload.counts).all()


def test_program_has_a_binary_for_each_query_and_model(small, tmp_path):
    """Not for each class: two equal queries have variables of their own."""
    path = tmp_path / "program.lp"
    reference_plan(small, 0.5, lp=path)
    text = path.read_text()
    binaries = text[text.index("Binaries") :].split()[1:-1]
    assert len(binaries) == 6 * 3
    assert text.count("equations_4_and_5_query") == 6
    assert "least_model_0: " in text
    assert text.startswith("\\* offline_energy_optimal_serving *\\\nMinimize")


def test_pairs_that_are_too_slow_are_fixed_to_0(small):
    """The latency limit holds in the reference, too."""
    limited = replace(small, allowed=np.array([[True] * 5, [True] * 5, [False, True, False, False, True]]))
    reference, ours = reference_plan(limited, 0.1), plan_at(limited, 0.1)
    assert reference.solution.objective == pytest.approx(ours.solution.objective, abs=1e-9)
    assert not reference.solution.flow[2, [0, 2, 3]].any()


def test_what_cannot_be_met_is_infeasible_here_too(small):
    """Before PuLP is asked."""
    with pytest.raises(InfeasibleError):
        reference_plan(replace(small, lower=np.array([5, 5, 5])), 0.5)


def test_a_program_that_cannot_be_saved_says_so(small, tmp_path):
    """With the file's name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot write"):
        reference_plan(small, 0.5, lp=tmp_path / "file" / "x.lp")


def test_the_program_is_buildable_without_solving(small):
    """For those who bring a solver of their own."""
    program, x = binary_program(small.costs(0.5), small.workload.counts, small.lower, small.upper)
    assert program.name == "offline_energy_optimal_serving"
    assert len(x) == 3


def test_a_solver_that_is_not_installed_is_said_so(small, monkeypatch):
    """With what to run; where one of two is missing, the other does it."""
    monkeypatch.setattr("pulp.HiGHS.available", lambda _self: False)
    with pytest.raises(RequestError, match="pip install highspy"):
        reference_plan(small, 0.5, solver="highs")
    with monkeypatch.context() as without_cbc:
        without_cbc.setattr("pulp.COIN_CMD.available", lambda _self: False)
        with pytest.raises(RequestError, match=r"pip install 'pulp\[cbc\]'"):
            reference_plan(small, 0.5, solver="cbc")
    assert reference_plan(small, 0.5).solution.status == "optimal"
    limited, _ = plan_within(small, 0.2, Limits(tokens={"large": 100}))
    assert (limited.solution.flow @ small.workload.tokens)[2] <= 100
