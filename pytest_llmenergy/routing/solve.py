"""The routing problem solved exactly on K prices, with a certificate.

Sending query classes to models at given counts a model is a transportation problem, so its linear relaxation
has whole optima and its dual has one price a model: every class goes where cost less price is least. The dual
value of any prices is a lower bound (weak duality); the solution here meets it to the last integer.

Arrays of costs are (K, C): a row a model, a column a class of equal queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.exchange import exchange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_LEVEL_FACTOR = 4  # each level of refinement has this many times the classes of the one before
_COARSEST = 500  # classes; below, all are priced at once
_NEAR_TIES = 64  # the fewest classes that are settled one by one
_SPARE = 4  # near ties for each that is expected to move
_MAX_SWEEPS = 40
_ENOUGH_MOVED = 2  # classes: fewer are quicker moved one by one
_HALF_BITS = 31
_SAFE_QUERIES = 1 << 31  # beyond, sums of halves of a 62-bit cost could overflow


class InfeasibleError(RequestError):
    """No assignment meets all constraints; the message names those that cannot hold together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """An assignment of classes to models, and the proof of how good it is."""

    flow: Ints  # (K, C): queries of class c sent to model k
    prices: Floats  # (K,): in units of cost; a class goes where cost - price is least
    objective: float
    dual_bound: float  # no assignment costs less
    status: str = "optimal"

    @property
    def gap(self) -> float:
        """How far the objective can be from the optimum, relative."""
        return relative_gap(self.objective, self.dual_bound)

    @property
    def counts(self) -> Ints:
        """Queries a model, (K,)."""
        return self.flow.sum(axis=1)


def relative_gap(objective: float, dual_bound: float) -> float:
    """(objective - bound) / |objective|; 0 where both are equal."""
    if objective == dual_bound:
        return 0.0
    return (objective - dual_bound) / max(abs(objective), abs(dual_bound))


def solve(costs: Floats, counts: Ints, lower: Ints, upper: Ints, *, prices: Floats | None = None) -> Solution:
    """Find the cheapest assignment with lower[k] <= queries at model k <= upper[k].

    Args:
        costs: (K, C), the cost of one query of class c at model k; infinite where it may not go.
        counts: (C,), how many queries each class stands for.
        lower: (K,), the fewest queries of each model.
        upper: (K,), the most.
        prices: (K,), where to start: those of a similar problem (the next zeta, say).

    Raises:
        InfeasibleError: the bounds cannot be met.
        RequestError: there are no queries, or a cost is not a number.
    """
    check_bounds(counts, lower, upper)
    lower, upper = np.asarray(lower, np.int64), np.asarray(upper, np.int64)
    whole, unit, blocked = _whole_costs(costs)
    start = np.zeros(len(whole), np.int64)
    if prices is None:
        levels = _levels(len(counts))
    else:
        levels = [1]
        start = np.rint(np.asarray(prices) / unit).astype(np.int64)
    for stride in levels[:-1]:
        first = stride == levels[0]
        # Every so-manieth class stands for its neighbours: classes are sorted, so these cost much the same.
        weights = np.add.reduceat(counts, np.arange(0, len(counts), stride))
        start = _near_prices(whole[:, ::stride], weights, lower, upper, start, first=first)
    whole_prices, flow, value, bound = _settle(whole, counts, lower, upper, start)
    if blocked is not None and flow[whole >= blocked].any():
        raise InfeasibleError("some queries can go to no model that still has room for them.")
    return Solution(flow=flow, prices=whole_prices * unit, objective=value * unit, dual_bound=bound * unit)


def check_bounds(counts: Ints, lower: Ints, upper: Ints) -> None:
    """Refuse bounds that no assignment of these queries can meet.

    Raises:
        InfeasibleError: the lower bounds ask for more queries than there are, or the upper for fewer.
        RequestError: there are no queries, or too many to sum exactly.
    """
    queries = int(np.sum(counts))
    if not queries:
        raise RequestError("the workload has no queries. Give one with at least one query.")
    if queries >= _SAFE_QUERIES:
        raise RequestError(
            f"{queries} queries are more than one plan can hold ({_SAFE_QUERIES - 1}). Split the workload."
        )
    crossed = np.flatnonzero(np.asarray(lower) > np.asarray(upper))
    if len(crossed):
        k = int(crossed[0])
        raise InfeasibleError(f"a model must get at least {lower[k]} and at most {upper[k]} queries.")
    if int(np.sum(lower)) > queries:
        raise InfeasibleError(
            f"the least shares add up to {int(np.sum(lower))} queries; the workload has {queries}."
        )
    if int(np.sum(upper)) < queries:
        raise InfeasibleError(
            f"the largest shares add up to {int(np.sum(upper))} queries; the workload has {queries}."
        )


def _whole_costs(costs: Floats) -> tuple[Ints, float, int | None]:
    """Costs as integers, the unit of one, and the integer that stands for "may not go".

    Integers make the certificate exact. The unit is a power of two small enough that a float cost of the
    largest size loses nothing, and large enough that a price, a sum of up to 2K costs, cannot overflow.
    """
    costs = np.asarray(costs, np.float64)
    if np.isnan(costs).any() or np.isneginf(costs).any():
        raise RequestError("a query's cost is not a number. Check the fits and the workload for NaN.")
    finite = np.isfinite(costs)
    all_finite = bool(finite.all())
    largest = float(np.max(np.abs(costs), where=finite, initial=0.0)) or 1.0
    hops = int(np.ceil(np.log2(2 * len(costs) + 2)))
    bits = 60 - hops * (1 if all_finite else 2)
    unit = float(2.0 ** (np.ceil(np.log2(largest)) - bits))
    if all_finite:
        return np.rint(costs / unit).astype(np.int64), unit, None
    blocked = 1 << (bits + hops)  # dearer than any chain of moves that avoids it
    whole = np.full(costs.shape, blocked, np.int64)
    whole[finite] = np.rint(costs[finite] / unit).astype(np.int64)
    return whole, unit, blocked


def _levels(classes: int) -> list[int]:
    stride, strides = 1, [1]
    while classes // (stride * _LEVEL_FACTOR) >= _COARSEST:
        stride *= _LEVEL_FACTOR
        strides.insert(0, stride)
    return strides


def _two_best(whole: Ints, prices: Ints) -> tuple[Ints, Ints, NDArray[np.intp]]:
    """The least and second least of cost - price over models, and which model has the least."""
    best = whole[0] - prices[0]
    second = np.full_like(best, np.iinfo(np.int64).max)
    where = np.zeros(len(best), np.intp)
    for k in range(1, len(whole)):
        reduced = whole[k] - prices[k]
        lower = reduced < best
        np.minimum(second, np.where(lower, best, reduced), out=second)
        np.minimum(best, reduced, out=best)
        where[lower] = k
    return best, second, where


def _near_ties(
    whole: Ints, counts: Ints, lower: Ints, upper: Ints, prices: Ints, least: int
) -> tuple[NDArray[np.intp], Ints]:
    """The classes that these prices leave nearest to a change of side, and the queries of the others a model.

    At least `least` of them, and as many as could mend the counts several times over.
    """
    best, second, where = _two_best(whole, prices)
    models, classes = whole.shape
    placed = _count(where, counts, models)
    astray = int(np.sum(np.maximum(placed - upper, 0) + np.maximum(lower - placed, 0)))
    size = max(least, int(_SPARE * astray * classes / counts.sum()))
    if size >= classes:
        return np.arange(classes), np.zeros(models, np.int64)
    rows = np.argpartition(second - best, size)[:size]
    rows.sort()
    return rows, placed - _count(where[rows], counts[rows], models)


def _count(where: NDArray[np.intp], counts: Ints, models: int) -> Ints:
    # bincount's weights are floats, exact for whole numbers below 2^53.
    return np.bincount(where, counts, models).astype(np.int64)


def _auction(whole: Ints, counts: Ints, lower: Ints, upper: Ints, prices: Ints) -> Ints:
    """Raise or lower one price at a time until the model's count is right: exact ascent along each price.

    It ends near the optimum, and can end beside it where several prices would have to move together.
    """
    prices = prices.copy()
    reduced = whole - prices[:, None]
    for _ in range(_MAX_SWEEPS):
        moved = 0
        for k in range(len(whole)):
            reduced[k] = np.iinfo(np.int64).max
            wish = whole[k] - reduced.min(axis=0)  # a class comes to k once its price exceeds this
            order = np.argsort(wish)
            wish = wish[order]
            placed = np.cumsum(counts[order])
            price = _clearing_price(wish, placed, int(lower[k]), int(upper[k]))
            moved = max(moved, abs(int(np.subtract(*np.searchsorted(wish, (price, prices[k]))))))
            prices[k] = price
            reduced[k] = whole[k] - price
        if moved <= _ENOUGH_MOVED:
            break
    return prices


def _clearing_price(wish: Ints, placed: Ints, lower: int, upper: int) -> int:
    """The price nearest 0 at which a model's count can be between the bounds.

    Args:
        wish: (S,), sorted: the price above which each class comes.
        placed: (S,), the queries of the first classes together.
        lower: fewest queries.
        upper: most queries.
    """
    last = len(wish) - 1
    below, upto = np.searchsorted(wish, 0, "left"), np.searchsorted(wish, 0, "right")
    if upto == 0 or placed[upto - 1] < lower:
        if lower <= 0:
            return 0
        return int(wish[min(int(np.searchsorted(placed, lower)), last)])
    if below > 0 and placed[below - 1] > upper:
        return int(wish[min(int(np.searchsorted(placed, upper, "right")), last)])
    return 0


def _near_prices(whole: Ints, counts: Ints, lower: Ints, upper: Ints, prices: Ints, *, first: bool) -> Ints:
    """Prices near the optimum: those of the near ties, the other classes staying where they are."""
    least = len(counts) if first else len(counts) // _LEVEL_FACTOR
    rows, rest = _near_ties(whole, counts, lower, upper, prices, least)
    return _auction(whole[:, rows], counts[rows], lower - rest, upper - rest, prices)


def _settle(whole: Ints, counts: Ints, lower: Ints, upper: Ints, prices: Ints) -> tuple[Ints, Ints, int, int]:
    """Optimal prices and flow with their values: the near ties settled, more of them until it is proved."""
    least = max(_NEAR_TIES, int(_SPARE * np.sqrt(len(counts))))
    while True:
        rows, rest = _near_ties(whole, counts, lower, upper, prices, least)
        part = whole[:, rows]
        prices = _auction(part, counts[rows], lower - rest, upper - rest, prices)
        prices, part_flow = exchange(part, counts[rows], lower - rest, upper - rest, prices)
        best, _, where = _two_best(whole, prices)
        flow = np.zeros_like(whole)
        flow[where, np.arange(len(counts))] = counts
        flow[:, rows] = part_flow
        placed = flow.sum(axis=1)
        if (placed >= lower).all() and (placed <= upper).all():
            value = exact_dot(whole.ravel(), flow.ravel())
            bound = exact_dot(best, counts) + exact_dot(prices, np.where(prices > 0, lower, upper))
            if value == bound:
                return prices, flow, value, bound
        if len(rows) == len(counts):  # pragma: no cover - the exchange over all classes is exact
            raise AssertionError("the exchange ended without an optimum")
        least = len(rows) * _LEVEL_FACTOR


def exact_dot(costs: Ints, counts: Ints) -> int:
    """The sum of costs times counts, exactly: in halves of 31 bits that cannot overflow."""
    high, low = costs >> _HALF_BITS, costs & ((1 << _HALF_BITS) - 1)
    return (int(high @ counts) << _HALF_BITS) + int(low @ counts)
