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
_SETTLED = 25.0  # temperatures: e^-25 of a class whose margin is this wide is somewhere else
_FEW = 4  # classes a model left undecided or astray: K - 1 stay tied, a few more are done one by one
_MAX_STEPS = 30
_ENOUGH = 1e-4  # of the queries at this stage: the next is cooler and finer
_RIDGE = 1e-12
_SAMPLE = 1 << 12  # classes through which more of them are first seen ...
_SAMPLE_FROM = 16  # ... where more than one in so many has to move


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where classes go at some prices, and how clearly."""

    where: Places  # (C,): the model with the least cost - price
    least: NDArray[Any]  # (C,): that cost - price
    margin: NDArray[Any]  # (C,): how much dearer the next model is
    placed: Ints  # (K,): queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Classes of queries, what they cost at each model, and how many a model takes."""

    costs: NDArray[Any]  # (K, C)
    counts: Ints  # (C,)
    lower: Ints  # (K,)
    upper: Ints  # (K,)

    def at(self, prices: NDArray[Any]) -> Standing:
        """Each class where cost - price is least."""
        least = self.costs[0] - prices[0]
        far = np.inf if least.dtype.kind == "f" else np.iinfo(least.dtype).max
        second = np.full_like(least, far)
        where = np.zeros(len(least), np.intp)
        for k in range(1, len(self.costs)):
            reduced = self.costs[k] - prices[k]
            where[reduced < least] = k
            np.minimum(second, np.maximum(least, reduced), out=second)
            np.minimum(least, reduced, out=least)
        placed = _count_at(where, self.counts, len(self.costs))
        return Standing(where=where, least=least, margin=second - least, placed=placed)

    def only(self, near: Places, standing: Standing) -> Market:
        """Some of the classes, with what the others, which stay where they are, leave of the bounds."""
        counts = self.counts[near]
        rest = standing.placed - _count_at(standing.where[near], counts, len(self.costs))
        return Market(
            # take keeps a row a model; indexing would turn the array round and make every sum slow.
            costs=self.costs.take(near, axis=1),
            counts=counts,
            lower=self.lower - rest,
            upper=self.upper - rest,
        )

    def wanted(self, prices: NDArray[Any], placed: Ints) -> Ints:
        """The queries each model has to end with, (K,), for these prices to be the optimum's.

        A price says which bound holds its model; without one, anywhere between will do.
        """
        free = np.clip(placed, self.lower, self.upper)
        return np.where(prices > 0, self.lower, np.where(prices < 0, self.upper, free))

    def astray(self, prices: NDArray[Any], standing: Standing) -> int:
        """About how many classes have to move to mend the counts."""
        queries = np.abs(standing.placed - self.wanted(prices, standing.placed)).sum()
        return int(np.ceil(queries * len(self.counts) / standing.placed.sum()))


def _count_at(where: Places, counts: Ints, models: int) -> Ints:
    """Queries a model, (K,); bincount sums floats, exact for whole numbers below 2^53."""
    return np.bincount(where, counts, models).astype(np.int64)


def near_prices(market: Market, prices: Floats) -> Floats:
    """Prices at which nearly every class is where the optimum has it, from any prices (K,)."""
    models, classes = market.costs.shape
    reach = _COOLING
    for attempt in range(_ATTEMPTS):
        standing = market.at(prices)
        astray = market.astray(prices, standing)
        if astray <= _FEW * models:
            break
        stride = -(-classes // _SAMPLE)
        if stride > 1 and attempt == 0 and astray > classes // _SAMPLE_FROM:
            prices = near_prices(_sample(market, stride), prices)
            continue
        # Hot enough for the classes that have to move, and hotter where that was too cold to get there.
        near_a_tie = min(_HOTTEST, reach * astray / classes)
        temperature = float(np.quantile(standing.margin, near_a_tie))
        if temperature == 0:  # models of equal cost tie everywhere, and the others still have a price
            rest = (market.costs - prices[:, None]).mean(axis=0) - standing.least
            temperature = float(np.quantile(rest, _HOTTEST))
        if not 0 < temperature < np.inf:
            break
        prices = _cool(market, prices, standing, temperature)
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


def _cool(market: Market, prices: Floats, standing: Standing, temperature: float) -> Floats:
    """Balance at ever lower temperatures, each time only the classes that are not settled."""
    for stage in range(_MAX_STAGES):
        if stage:
            standing = market.at(prices)
        market = market.only(np.flatnonzero(standing.margin < _SETTLED * temperature), standing)
        prices, undecided = _balance(market, prices, temperature)
        if undecided < _FEW * len(prices):
            break
        temperature /= _COOLING
    # A price so near 0 holds no bound: the count lies between them.
    prices[(market.lower < market.upper) & (np.abs(prices) < _SETTLED * temperature)] = 0
    return prices


def _balance(market: Market, prices: Floats, temperature: float) -> tuple[Floats, float]:
    """Newton's method on the smoothed dual: prices at which the expected counts are within the bounds.

    Also how many classes the temperature leaves undecided.
    """
    counts = market.counts.astype(np.float64)
    slack = market.upper - market.lower
    enough = max(1.0, _ENOUGH * float(counts.sum()))
    ridge = _RIDGE * np.eye(len(prices))
    level = prices / temperature
    costs = market.costs / temperature
    chance = np.empty_like(costs)
    for _ in range(_MAX_STEPS):
        np.subtract(level[:, None], costs, out=chance)
        chance -= chance.max(axis=0)
        np.exp(chance, out=chance)
        chance /= chance.sum(axis=0)
        weighted = chance * counts
        placed = weighted.sum(axis=1)
        # Where the bounds differ, the price pulls the count from one to the other as it crosses 0.
        pull = 1 / (1 + np.exp(np.clip(level, -_SETTLED, _SETTLED)))
        astray = market.lower + slack * pull - placed
        if max(astray.max(), -astray.min()) <= enough:
            break
        curvature = -(weighted @ chance.T)
        diagonal = curvature.ravel()[:: len(prices) + 1]
        diagonal += placed + slack * pull * (1 - pull)
        step = np.linalg.solve(curvature + ridge * (diagonal.sum() + 1), astray)
        length = max(step.max(), 0.0) - min(step.min(), 0.0)
        # The dual is self-concordant: a step shortened so never overshoots (Sun and Tran-Dinh, 2019).
        level = level + step * (np.log1p(length) / length if length else 1)
    return level * temperature, len(counts) - float(chance.max(axis=0).sum())
