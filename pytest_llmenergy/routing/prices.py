"""Prices near the optimum, by Newton's method on a smoothed dual whose smoothing is then taken away.

With temperature T a query goes to model k with probability proportional to exp((price[k] - cost[k]) / T):
the dual of entropic optimal transport, smooth and concave in K prices (Peyré and Cuturi, Computational
Optimal Transport, chapters 4 and 5). Each stage cools, and keeps only the classes that the cooler prices can
still move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Places = NDArray[np.intp]

_COOLING = 8
_MAX_STAGES = 10  # ties of many equal classes stay undecided however cold it gets
_HOTTEST = 0.9  # of the classes within the first temperature of a tie
_ATTEMPTS = 4
_SETTLED = 40.0  # temperatures: e^-40 of a class whose margin is this wide is somewhere else
_FEW = 4  # classes a model left undecided or astray: K - 1 stay tied, a few more are done one by one
_MAX_STEPS = 30
_ENOUGH = 1e-4  # of the queries at this stage: the next is cooler and finer
_RIDGE = 1e-12
_SAMPLE = 1 << 12  # classes through which more of them are first seen ...
_SAMPLE_FROM = 16  # ... where more than one in so many has to move


def two_best(costs: NDArray[Any], prices: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], Places]:
    """The least and second least of cost - price over models, and which model has the least; all (C,)."""
    best = costs[0] - prices[0]
    far = np.inf if best.dtype.kind == "f" else np.iinfo(best.dtype).max
    second = np.full_like(best, far)
    where = np.zeros(len(best), np.intp)
    for k in range(1, len(costs)):
        reduced = costs[k] - prices[k]
        lower = reduced < best
        np.minimum(second, np.where(lower, best, reduced), out=second)
        np.minimum(best, reduced, out=best)
        where[lower] = k
    return best, second, where


def count_at(where: Places, counts: Ints, models: int) -> Ints:
    """Queries a model, (K,); bincount sums floats, exact for whole numbers below 2^53."""
    return np.bincount(where, counts, models).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Classes of queries, what they cost at each model, and how many a model takes."""

    costs: NDArray[Any]  # (K, C)
    counts: Ints  # (C,)
    lower: Ints  # (K,)
    upper: Ints  # (K,)

    def only(self, near: Places, where: Places) -> Market:
        """Some of the classes, with what the others, which stay where they are, leave of the bounds."""
        models = len(self.costs)
        rest = count_at(where, self.counts, models) - count_at(where[near], self.counts[near], models)
        return Market(
            # take keeps a row a model; indexing would turn the array round and make every sum slow.
            costs=self.costs.take(near, axis=1),
            counts=self.counts[near],
            lower=self.lower - rest,
            upper=self.upper - rest,
        )

    def astray(self, where: Places) -> int:
        """About how many classes have to move to mend the counts."""
        placed = count_at(where, self.counts, len(self.costs))
        queries = np.maximum(placed - self.upper, 0).sum() + np.maximum(self.lower - placed, 0).sum()
        return int(np.ceil(queries * len(self.counts) / self.counts.sum()))


def near_prices(market: Market, prices: Floats) -> Floats:
    """Prices at which nearly every class is where the optimum has it, from any prices (K,)."""
    models, classes = market.costs.shape
    reach = _COOLING
    for attempt in range(_ATTEMPTS):
        best, second, where = two_best(market.costs, prices)
        astray = market.astray(where)
        if astray <= _FEW * models:
            break
        stride = -(-classes // _SAMPLE)
        if stride > 1 and attempt == 0 and astray > classes // _SAMPLE_FROM:
            prices = near_prices(_sample(market, stride), prices)
            continue
        # Hot enough for the classes that have to move, and hotter where that was too cold to get there.
        near_a_tie = min(_HOTTEST, reach * astray / classes)
        temperature = float(np.quantile(second - best, near_a_tie))
        if temperature == 0:  # models of equal cost tie everywhere, and the others still have a price
            temperature = float(np.quantile((market.costs - prices[:, None]).mean(axis=0) - best, _HOTTEST))
        if not 0 < temperature < np.inf:
            break
        prices = _cool(market, prices, temperature)
        reach *= _COOLING
    return prices


def _sample(market: Market, stride: int) -> Market:
    """Each class of the sample stands for its neighbours: classes are sorted, so these cost much the same."""
    return Market(
        costs=np.ascontiguousarray(market.costs[:, ::stride]),
        counts=np.add.reduceat(market.counts, np.arange(0, len(market.counts), stride)),
        lower=market.lower,
        upper=market.upper,
    )


def _cool(market: Market, prices: Floats, temperature: float) -> Floats:
    """Balance at ever lower temperatures, each time only the classes that are not settled."""
    for _ in range(_MAX_STAGES):
        best, second, where = two_best(market.costs, prices)
        market = market.only(np.flatnonzero(second - best < _SETTLED * temperature), where)
        with np.errstate(over="ignore"):  # far colder than a margin, chances are 0 and 1
            prices, undecided = _balance(market, prices, temperature)
        if undecided < _FEW * len(prices):
            break
        temperature /= _COOLING
    return prices


def _balance(market: Market, prices: Floats, temperature: float) -> tuple[Floats, float]:
    """Newton's method on the smoothed dual: prices at which the expected counts are within the bounds.

    Also how many classes the temperature leaves undecided.
    """
    slack = market.upper - market.lower
    enough = max(1.0, _ENOUGH * float(market.counts.sum()))
    undecided = 0.0
    for _ in range(_MAX_STEPS):
        chance = _chances(market.costs, prices, temperature)
        weighted = chance * market.counts
        placed = weighted.sum(axis=1)
        # Where the bounds differ, the price pulls the count from one to the other as it crosses 0.
        pull = 1 / (1 + np.exp(np.clip(prices / temperature, -_SETTLED, _SETTLED)))
        astray = market.lower + slack * pull - placed
        undecided = float(np.sum(1 - chance.max(axis=0)))
        if np.abs(astray).max() <= enough:
            break
        curvature = np.diag(placed + slack * pull * (1 - pull)) - weighted @ chance.T
        curvature += np.eye(len(prices)) * _RIDGE * (np.trace(curvature) + 1)
        step = np.linalg.solve(curvature, astray)
        length = np.ptp(np.append(step, 0))
        # The dual is self-concordant: a step shortened so never overshoots (Sun and Tran-Dinh, 2019).
        prices = prices + step * temperature * (np.log1p(length) / length if length else 1)
    return prices, undecided


def _chances(costs: Floats, prices: Floats, temperature: float) -> Floats:
    """The probability of each model for each class, (K, C)."""
    chance = prices[:, None] - costs
    chance -= chance.max(axis=0)
    chance /= temperature
    np.exp(chance, out=chance)
    chance /= chance.sum(axis=0)
    return chance
