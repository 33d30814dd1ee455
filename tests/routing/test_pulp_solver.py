"""Two versions of PuLP, one set of words."""

import pulp
import pytest

from pytest_llmenergy.routing import pulp_solver


def program(*, least):
    """The least of x + 2 y with x + y at least so much, x at most 3, y at most 5."""
    found = pulp.LpProblem("small", pulp.LpMinimize)
    x = found.add_variable("x", lowBound=0, upBound=3)
    y = found.add_variable("y", lowBound=0, upBound=5)
    found += x + 2 * y, "objective"
    found += x + y >= least, "least"
    found += x - y <= 5, "difference"
    return found


@pytest.mark.parametrize("name", ["cbc", "highs"])
@pytest.mark.parametrize(("least", "word"), [(4, "optimal"), (9, "infeasible")])
def test_how_a_solve_ended_is_one_word(name, least, word):
    """The same for every solver and version."""
    assert pulp_solver.solve(program(least=least), pulp_solver.open_solver(name)) == word


def test_multipliers_say_what_one_more_unit_costs():
    """Of the rows asked for, in that order; 0 where a row does not bind."""
    solved = program(least=4)
    pulp_solver.solve(solved, pulp_solver.open_solver("highs"))
    # x = 3, y = 1: one more unit has to come from y, and x - y = 2 is far from its limit.
    assert pulp_solver.multipliers(solved, ["difference", "least"]).tolist() == pytest.approx([0, 2])


class Interrupted(pulp.HiGHS):
    """A solver that runs out of time with a solution in hand."""

    def actualSolve(self, lp, **options):  # noqa: N802 - PuLP's name
        """Solve, and say that time ran out."""
        ended = super().actualSolve(lp, **options)
        if isinstance(ended, int):
            lp.assignStatus(pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible)
            return pulp.LpStatusOptimal
        ended.status = pulp.constants.LpSolveStatus.TimeLimit
        return ended


def test_a_solution_found_in_time_is_not_called_optimal():
    """PuLP 3 calls it so; a plan may be made of it, a proof may not."""
    assert pulp_solver.solve(program(least=4), Interrupted(msg=False)) == "feasible"


def test_a_bare_limit_is_named_in_words():
    """`NotSolved` and `Not Solved` are the same."""

    class Idle(pulp.HiGHS):
        def actualSolve(self, lp, **_options):  # noqa: N802
            lp.assignStatus(pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound)
            return pulp.LpStatusNotSolved

    if int(pulp.__version__.split(".")[0]) > 3:
        pytest.skip("PuLP 4 takes its own record of a solve alone")
    assert pulp_solver.solve(program(least=4), Idle(msg=False)) == "not-solved"
