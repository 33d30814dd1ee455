"""The trade-off of energy against accuracy: plans over zeta, and the one that just meets a demand.

The least objective is concave and piecewise linear in zeta, and the plan of a point is a tangent there.
Between two points it lies above their chord, so the chord bounds how much better a plan could be in between;
and where two plans cost the same, either nothing is cheaper and the break point is found, or a new plan is
(Eisner and Severance, Mathematical techniques for efficient record segmentation, JACM 23, 1976).
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy import units
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.problem import check_zeta
from pytest_llmenergy.routing.solve import Solution, relative_gap, solve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pytest_llmenergy.routing.problem import Problem, Totals

_SAME = 1e-12  # relative: two objectives that floats cannot tell apart
_MAX_PLANS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The optimal plan at one zeta."""

    zeta: float
    solution: Solution
    totals: Totals
    solve_s: float
    # Where a demand chose zeta: what no plan that meets it can be below (J) or above (accuracy).
    energy_bound_j: float | None = None
    accuracy_bound: float | None = None


def plan_at(problem: Problem, zeta: float, *, prices: NDArray[np.float64] | None = None) -> Point:
    """The optimal plan at one zeta; prices of a neighbour make it quicker.

    Raises:
        RequestError: zeta is not in [0, 1].
        InfeasibleError: the shares cannot be met.
    """
    check_zeta(zeta)
    start_s = time.perf_counter()
    solution = solve(
        problem.costs(zeta), problem.workload.counts, problem.lower, problem.upper, prices=prices
    )
    solve_s = time.perf_counter() - start_s
    return Point(zeta=zeta, solution=solution, totals=problem.totals(solution.flow), solve_s=solve_s)


def sweep(problem: Problem, zetas: Iterable[float]) -> list[Point]:
    """The optimal plan at each zeta, each started from the prices of the one before."""
    points: list[Point] = []
    for zeta in zetas:
        points.append(plan_at(problem, zeta, prices=_expected_prices(points, zeta)))
    return points


def _expected_prices(points: Sequence[Point], zeta: float) -> NDArray[np.float64] | None:
    """Where the prices of the last points lead: costs are linear in zeta, and prices follow them."""
    if not points:
        return None
    last = points[-1]
    if len(points) == 1 or (step := last.zeta - points[-2].zeta) == 0:
        return last.solution.prices
    slope = (last.solution.prices - points[-2].solution.prices) / step
    prices: NDArray[np.float64] = last.solution.prices + slope * (zeta - last.zeta)
    return prices


def between(problem: Problem, points: Sequence[Point]) -> float | None:
    """By how much, relative, the better of two neighbouring plans can miss the optimum between them."""
    worst = None
    for left, right in itertools.pairwise(sorted(points, key=lambda point: point.zeta)):
        zeta = _crossing(problem, left, right)
        if zeta is None or not left.zeta < zeta < right.zeta:
            continue
        part = (zeta - left.zeta) / (right.zeta - left.zeta)
        chord = (1 - part) * left.solution.objective + part * right.solution.objective
        worst = max(worst or 0.0, relative_gap(problem.objective(left.totals, zeta), chord))
    return worst


def _crossing(problem: Problem, left: Point, right: Point) -> float | None:
    """The zeta at which both plans cost the same."""
    energy = (left.totals.energy_j - right.totals.energy_j) / problem.energy_scale_j
    # objective = zeta * E - (1 - zeta) * A, so E is its value at 1 and -A its value at 0.
    accuracy = problem.objective(right.totals, 0) - problem.objective(left.totals, 0)
    return accuracy / (accuracy + energy) if accuracy + energy > 0 else None


def at_accuracy(problem: Problem, least: float, known: Sequence[Point] = ()) -> Point:
    """The cheapest plan on the frontier whose accuracy is at least this: the largest zeta that has one.

    Raises:
        RequestError: no plan within the shares is so accurate.
    """
    if not 0 <= least <= 1:
        raise RequestError(f"an accuracy of {least:g} is not between 0 and 1. Write a fraction, or 60%.")
    left, right = _around(problem, lambda totals: totals.accuracy >= least, known)
    if left is None:
        most = units.round_down(right.totals.accuracy)
        raise RequestError(
            f"no plan reaches an accuracy of {least:g}: within the shares the most is {most:g}. "
            "Ask for less, or give the accurate models larger shares."
        )
    if left is right:
        return left
    a, b = left.totals, right.totals
    bound = b.energy_j + (a.energy_j - b.energy_j) * (least - b.accuracy) / (a.accuracy - b.accuracy)
    return _with_bounds(left, energy_bound_j=min(bound, a.energy_j))


def at_energy(problem: Problem, most_j: float, known: Sequence[Point] = ()) -> Point:
    """The most accurate plan on the frontier whose energy is at most this: the smallest zeta that has one.

    Raises:
        RequestError: no plan within the shares needs so little.
    """
    if not most_j >= 0:
        raise RequestError(f"an energy of {most_j:g} J is none that a plan can have. Write 5 kWh, say.")
    left, right = _around(problem, lambda totals: totals.energy_j > most_j, known)
    if left is None:
        return right
    if left is right:
        least_wh = units.round_up(units.watt_hours_from_joules(right.totals.energy_j))
        raise RequestError(
            f"no plan needs as little as {_in_wh(most_j)}: within the shares the least is "
            f"{units.format_quantity(least_wh, 'Wh', 4)}. "
            "Allow more, or give the frugal models larger shares."
        )
    a, b = left.totals, right.totals
    bound = b.accuracy + (a.accuracy - b.accuracy) * (most_j - b.energy_j) / (a.energy_j - b.energy_j)
    return _with_bounds(right, accuracy_bound=max(bound, b.accuracy))


def _in_wh(energy_j: float) -> str:
    return units.format_quantity(units.watt_hours_from_joules(energy_j), "Wh", 4)


def _around(
    problem: Problem, before: Callable[[Totals], bool], known: Sequence[Point]
) -> tuple[Point | None, Point]:
    """The neighbouring plans of the frontier between which `before` turns from true to false.

    (None, first) where it is never true, (last, last) where it is true to the end.
    """
    left = next((p for p in reversed(known) if before(p.totals)), None)
    right = next((p for p in known if not before(p.totals)), None)
    left = left or plan_at(problem, 0.0)
    if not before(left.totals):
        return None, left
    right = right or plan_at(problem, 1.0)
    if before(right.totals):
        return right, right
    for _ in range(_MAX_PLANS):
        zeta = _crossing(problem, left, right)
        if zeta is None:
            break
        point = plan_at(problem, zeta, prices=left.solution.prices)
        line = problem.objective(left.totals, zeta)
        scale = abs(zeta * left.totals.energy_j / problem.energy_scale_j) + abs(line)
        if point.solution.objective >= line - _SAME * scale:
            # Both plans are optimal at this very zeta.
            return _moved(left, point), _moved(right, point)
        if before(point.totals):
            left = point
        else:
            right = point
    return left, right


def _moved(point: Point, to: Point) -> Point:
    solution = Solution(
        flow=point.solution.flow,
        prices=to.solution.prices,
        objective=to.solution.objective,
        dual_bound=to.solution.dual_bound,
    )
    return Point(zeta=to.zeta, solution=solution, totals=point.totals, solve_s=point.solve_s + to.solve_s)


def _with_bounds(
    point: Point, *, energy_bound_j: float | None = None, accuracy_bound: float | None = None
) -> Point:
    return Point(
        zeta=point.zeta,
        solution=point.solution,
        totals=point.totals,
        solve_s=point.solve_s,
        energy_bound_j=energy_bound_j,
        accuracy_bound=accuracy_bound,
    )
