"""The paper's program as the paper writes it: a binary variable for each query and model, solved by PuLP.

Equations 2 to 5 of Wilkins, Keshav and Mortier (HotCarbon'24). It is what the quick solver is held to.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing import pulp_solver
from pytest_llmenergy.routing.frontier import Point
from pytest_llmenergy.routing.problem import check_zeta
from pytest_llmenergy.routing.solve import Solution, check_bounds, solve

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.problem import Problem

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


def binary_program(costs: Floats, counts: Ints, lower: Ints, upper: Ints) -> tuple[Any, Any]:
    """The program and its variables x[k][i], for queries i in the order of their classes.

    Args:
        costs: (K, C), infinite where a class may not go.
        counts: (C,), queries a class.
        lower: (K,), fewest queries a model.
        upper: (K,), most.
    """
    pulp = pulp_solver.pulp()
    models, queries = range(len(costs)), range(int(counts.sum()))
    where = np.repeat(np.arange(len(counts)), counts).tolist()
    program = pulp.LpProblem("offline_energy_optimal_serving", pulp.LpMinimize)
    x = program.add_variable_dicts("x", (models, queries), lowBound=0, upBound=1, cat=pulp.LpBinary)
    pairs = [(k, i) for k in models for i in queries if np.isfinite(costs[k, where[i]])]
    program += pulp.lpSum(float(costs[k, where[i]]) * x[k][i] for k, i in pairs), "equation_2"
    for i in queries:
        program += pulp.lpSum(x[k][i] for k in models) == 1, f"equations_4_and_5_query_{i}"
    for k in models:
        served = pulp.lpSum(x[k][i] for i in queries)
        program += served >= int(lower[k]), f"least_model_{k}"
        program += served <= int(upper[k]), f"most_model_{k}"
    for k, i in {(k, i) for k in models for i in queries} - set(pairs):
        program += x[k][i] == 0, f"too_slow_{k}_{i}"
    return program, x


def reference_plan(
    problem: Problem, zeta: float, *, solver: str | None = None, lp: Path | None = None
) -> Point:
    """The plan by PuLP; its objective stands beside the bound that the prices prove.

    Args:
        problem: the workload and the models.
        zeta: the trade-off.
        solver: cbc or highs; whichever is there, where not given.
        lp: where to save the program in LP format.

    Raises:
        RequestError: the solver is not installed, or ends without an optimum.
        InfeasibleError: the shares cannot be met.
    """
    check_zeta(zeta)
    costs, counts = problem.costs(zeta), problem.workload.counts
    check_bounds(counts, problem.lower, problem.upper)
    proof = solve(costs, counts, problem.lower, problem.upper)
    start_s = time.perf_counter()
    program, x = binary_program(costs, counts, problem.lower, problem.upper)
    if lp is not None:
        write_lp(program, lp)
    names = (solver,) if solver else ("cbc", "highs")
    status = pulp_solver.solve(program, pulp_solver.open_solver(*names))
    solve_s = time.perf_counter() - start_s
    if status != "optimal":
        raise RequestError(f"PuLP ended {status}, without an optimum. Use --solver prices.")
    queries = int(counts.sum())
    chosen = np.array([[x[k][i].varValue for i in range(queries)] for k in range(len(costs))], float)
    starts = np.append(0, np.cumsum(counts)[:-1])
    flow = np.add.reduceat(np.rint(chosen).astype(np.int64), starts, axis=1)
    totals = problem.totals(flow)
    finite = np.where(flow > 0, costs, 0.0)
    solution = Solution(
        flow=flow,
        prices=proof.prices,
        objective=float(np.vdot(flow, finite)),
        dual_bound=proof.dual_bound,
        status=status,
    )
    return Point(zeta=zeta, solution=solution, totals=totals, solve_s=solve_s)


def write_lp(program: Any, path: Path) -> None:
    """Save a program in LP format.

    Raises:
        RequestError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        program.writeLP(str(temporary))
        temporary.replace(path)
    except OSError as error:
        raise RequestError(
            f"cannot write {path} ({error.strerror}). Choose another place, or mend its permissions."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is none has been complained of
            temporary.unlink()
