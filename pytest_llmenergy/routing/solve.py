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
from pytest_llmenergy.routing.prices import Market, near_prices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_NEAR_TIES = 64  # the fewest classes that are settled one by one
_SPARE = 4  # near ties for each that is expected to move
_GROWTH = 4
_HALF_BITS = 31
_FARTHEST = 2.0**60
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
        counts: Ints = self.flow.sum(axis=1)
        return counts


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
    start = np.zeros(len(whole)) if prices is None else np.asarray(prices, np.float64)
    dear = costs if blocked is None else np.where(np.isfinite(costs), costs, blocked * unit)
    near = near_prices(Market(costs=dear, counts=counts, lower=lower, upper=upper), start)
    # However far the prices went where a bound does not bind, they have to fit an integer.
    start_at = np.clip(np.rint(near / unit), -_FARTHEST, _FARTHEST).astype(np.int64)
    whole_prices, flow, value, bound = _settle(
        Market(costs=whole, counts=counts, lower=lower, upper=upper), start_at
    )
    if blocked is not None and flow[whole >= blocked].any():
        raise InfeasibleError("some queries can go to no model that still has room for them.")
    return Solution(
        flow=flow,
        prices=np.asarray(whole_prices * unit, np.float64),
        objective=value * unit,
        dual_bound=bound * unit,
    )


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


def _settle(market: Market, prices: Ints) -> tuple[Ints, Ints, int, int]:
    """Optimal prices and flow, and their values: the near ties settled, more of them until it is proved."""
    whole, counts, lower, upper = market.costs, market.counts, market.lower, market.upper
    classes = len(counts)
    standing = market.at(prices)
    size = _SPARE * market.astray(prices, standing)
    chosen = np.zeros(classes, bool)
    while True:
        size = min(max(_NEAR_TIES, size), classes - 1)
        chosen[np.argpartition(standing.margin, size)[: size + 1]] = True
        rows = np.flatnonzero(chosen)
        found, part = exchange(market.only(rows, standing), prices)
        proof = market.at(found)
        flow = np.zeros_like(whole)
        flow[standing.where, np.arange(classes)] = counts
        flow[:, rows] = part
        value = exact_dot(whole.ravel(), flow.ravel())
        bound = exact_dot(proof.least, counts) + exact_dot(found, np.where(found > 0, lower, upper))
        met = flow.sum(axis=1)
        if value == bound and (met >= lower).all() and (met <= upper).all():
            return found, flow, value, bound
        if len(rows) == classes:  # pragma: no cover - the exchange over all classes is exact
            raise AssertionError("the exchange ended without an optimum")
        chosen |= proof.where != standing.where  # they would move at the new prices: settle them too
        size *= _GROWTH


def exact_dot(costs: Ints, counts: Ints) -> int:
    """The sum of costs times counts, exactly: in halves of 31 bits that cannot overflow."""
    high, low = costs >> _HALF_BITS, costs & ((1 << _HALF_BITS) - 1)
    return (int(high @ counts) << _HALF_BITS) + int(low @ counts)
