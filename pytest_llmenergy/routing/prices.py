"""Prices near the optimum, by Newton's method on a smoothed dual whose smoothing is then taken away.

With temperature T a query goes to model k with probability proportional to exp((price[k] - cost[k]) / T): the
dual of entropic optimal transport, smooth and concave in K prices (Peyré and Cuturi, Computational Optimal
Transport, chapters 4 and 5). Each stage cools, and keeps only the classes that the cooler prices can still move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Places = NDArray[np.intp]

_COOLING = 8
_MAX_STAGES = 10  # ties of many equal classes stay undecided however cold it gets
_HOTTEST = 0.9
_SETTLED = 40.0  # temperatures: e^-40 of a class whose margin is this wide is somewhere else
_FEW = 2  # classes a model left undecided: K - 1 remain tied at the optimum, a few more are done one by one
_MAX_STEPS = 30
_ENOUGH = 1e-4  # of the queries at this stage: the next is cooler and finer
_RIDGE = 1e-12
_LARGEST_STAGE = 1 << 12  # classes: more are first seen through a sample


def two_best(costs: NDArray, prices: NDArray) -> tuple[NDArray, NDArray, Places]:
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


def near_prices(costs: Floats, counts: Ints, lower: Ints, upper: Ints, prices: Floats) -> Floats:
    """Prices at which nearly every class is where the optimum has it.

    Args:
        costs: (K, C); infinite where a class may not go.
        counts: (C,), queries a class.
        lower: (K,), fewest queries a model.
        upper: (K,), most.
        prices: (K,), where to start.
    """
    stride = -(-len(counts) // _LARGEST_STAGE)
    if stride > 1:
        # Every so-manieth class stands for its neighbours: classes are sorted, so these cost much the same.
        weights = np.add.reduceat(counts, np.arange(0, len(counts), stride))
        prices = near_prices(np.ascontiguousarray(costs[:, ::stride]), weights, lower, upper, prices)
    models = len(costs)
    best, second, where = two_best(costs, prices)
    astray = count_at(where, counts, models)
    astray = np.maximum(astray - upper, 0) + np.maximum(lower - astray, 0)
    astray_classes = _COOLING * len(counts) * astray.sum() / counts.sum()
    if astray_classes < 1:
        return prices
    temperature = float(np.quantile(second - best, min(_HOTTEST, astray_classes / len(counts))))
    if not 0 < temperature < np.inf:
        return prices
    for _ in range(_MAX_STAGES):
        near = np.flatnonzero(second - best < _SETTLED * temperature)
        rest = count_at(where, counts, models) - count_at(where[near], counts[near], models)
        # take keeps a row a model; indexing would turn the array round and make every sum slow.
        costs, counts, lower, upper = costs.take(near, axis=1), counts[near], lower - rest, upper - rest
        prices, undecided = _balance(costs, counts, lower, upper, prices, temperature)
        if undecided < _FEW * models:
            break
        temperature /= _COOLING
        best, second, where = two_best(costs, prices)
    return prices


def _balance(
    costs: Floats, counts: Ints, lower: Ints, upper: Ints, prices: Floats, temperature: float
) -> tuple[Floats, float]:
    """Newton's method on the smoothed dual: prices at which the expected counts are within the bounds.

    Also how many classes the temperature leaves undecided.
    """
    slack = upper - lower
    enough = max(1.0, _ENOUGH * float(counts.sum()))
    for _ in range(_MAX_STEPS):
        chance = prices[:, None] - costs
        chance -= chance.max(axis=0)
        chance /= temperature
        np.exp(chance, out=chance)
        chance /= chance.sum(axis=0)
        weighted = chance * counts
        placed = weighted.sum(axis=1)
        # Where the bounds differ, the price pulls the count from one to the other as it crosses 0.
        pull = 1 / (1 + np.exp(np.clip(prices / temperature, -_SETTLED, _SETTLED)))
        astray = lower + slack * pull - placed
        if np.abs(astray).max() <= enough:
            break
        curvature = np.diag(placed + slack * pull * (1 - pull)) - weighted @ chance.T
        curvature += np.eye(len(prices)) * _RIDGE * (np.trace(curvature) + 1)
        step = np.linalg.solve(curvature, astray)
        length = np.ptp(np.append(step, 0))
        # The dual is self-concordant: a step shortened so never overshoots (Sun and Tran-Dinh, 2019).
        prices = prices + step * temperature * (np.log1p(length) / length if length else 1)
    return prices, float(np.sum(1 - chance.max(axis=0)))
