"""PuLP and CBC, as the paper used them, against the price solver: seconds, ratios, equal objectives.

    python benchmarks/routing_solvers.py [--queries 500,5000,52002] [--binaries-up-to 52002]

Ours are medians, of 14 solves a size and of 5 sweeps; CBC runs once. The paper's binary program of 52,002
queries takes CBC minutes; --binaries-up-to 5000 leaves it out.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
from routing_workload import alpaca_like, made_up

from pytest_llmenergy.routing import pulp_solver
from pytest_llmenergy.routing.frontier import Point, plan_at, sweep
from pytest_llmenergy.routing.problem import Problem, largest_remainder, make_problem
from pytest_llmenergy.routing.reference import reference_plan
from pytest_llmenergy.routing.workload import workload_of

if TYPE_CHECKING:
    from pytest_llmenergy.routing.hosts import Host

ZETA = 0.5


def on_classes(problem: Problem, zeta: float) -> tuple[float, float]:
    """PuLP and CBC on merged classes: whole numbers of queries instead of binaries."""
    pulp = pulp_solver.pulp()
    start_s = time.perf_counter()
    costs, counts = problem.costs(zeta), problem.workload.counts
    models, classes = range(len(costs)), range(len(counts))
    program = pulp.LpProblem("classes", pulp.LpMinimize)
    x = program.add_variable_dicts("x", (models, classes), lowBound=0, cat=pulp.LpInteger)
    program += pulp.lpSum(float(costs[k, c]) * x[k][c] for k in models for c in classes)
    for c in classes:
        program += pulp.lpSum(x[k][c] for k in models) == int(counts[c])
    for k in models:
        program += pulp.lpSum(x[k][c] for c in classes) == int(problem.lower[k])
    status = pulp_solver.solve(program, pulp_solver.open_solver("cbc"))
    assert status == "optimal", status
    return pulp.value(program.objective), time.perf_counter() - start_s


def ours(
    tokens: tuple[np.ndarray, np.ndarray], hosts: list[Host], shares: list[float]
) -> tuple[Problem, Point, float]:
    """From the queries to a certified plan: merge, predict, price, settle, prove."""
    start_s = time.perf_counter()
    workload = workload_of(*tokens)
    counts = largest_remainder(shares, workload.queries)
    problem = make_problem(hosts, workload, (counts, counts))
    point = plan_at(problem, ZETA)
    return problem, point, time.perf_counter() - start_s


def main() -> None:
    """Print a line a size, then the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", default="500,5000,52002")
    parser.add_argument("--binaries-up-to", type=int, default=52_002)
    given = parser.parse_args()
    hosts, shares = made_up(3)
    print("queries  classes   ours s  CBC classes s    x  CBC binaries s        x  objectives differ by")
    for queries in map(int, given.queries.split(",")):
        tokens = alpaca_like(queries)
        runs = [ours(tokens, hosts, shares) for _ in range(7)]
        problem, point, _ = runs[0]
        assert point.solution.gap == 0
        merged, merged_s = on_classes(problem, ZETA)
        differ = abs(merged - point.solution.objective)
        reference = None
        if queries <= given.binaries_up_to:
            reference = reference_plan(problem, ZETA, solver="cbc")
            differ = max(differ, abs(reference.solution.objective - point.solution.objective))
        # Before CBC and after it, since it takes minutes in which a machine may become busier or idle.
        runs += [ours(tokens, hosts, shares) for _ in range(7)]
        ours_s = float(np.median([seconds for _, _, seconds in runs]))
        binaries = (
            f"{'-':>14} {'-':>8}"
            if reference is None
            else f"{reference.solve_s:14.2f} {reference.solve_s / ours_s:8.0f}"
        )
        print(
            f"{queries:7d} {len(problem.workload.counts):8d} {ours_s:8.4f} {merged_s:14.2f} "
            f"{merged_s / ours_s:4.0f}  {binaries}  {differ / abs(point.solution.objective):.1e} relative",
            flush=True,
        )
    # Turn by turn, for the same reason.
    one, swept = [], []
    for _ in range(5):
        one += [ours(tokens, hosts, shares)[2] for _ in range(3)]
        start_s = time.perf_counter()
        points = sweep(problem, np.linspace(0, 1, 101))
        swept.append(time.perf_counter() - start_s)
        assert max(p.solution.gap for p in points) == 0
    one_s, sweep_s = float(np.median(one)), float(np.median(swept))
    print(f"101-point sweep of {queries}: {sweep_s:.2f} s, {sweep_s / one_s:.0f} x one solve ({one_s:.4f} s)")


if __name__ == "__main__":
    main()
