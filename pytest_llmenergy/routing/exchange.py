"""Counts brought within their bounds by the cheapest chains of moves between models.

Successive shortest paths (Ahuja, Magnanti and Orlin, Network Flows, 9.7) on a network of K + 1 nodes: the
models, and the outside, which takes the slack between a model's bounds. Moving a query from model i to model
j costs the least cost[j] - cost[i] over the classes that have a query at i. Started from prices that hold,
every step keeps the flow optimal for the counts it has, so it ends at the optimum.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.routing.prices import Market

    Ints = NDArray[np.int64]

_FAR = 1 << 61  # no way; twice this still fits an int64
_REACHABLE = 1 << 60


def exchange(market: Market, prices: Ints) -> tuple[Ints, Ints]:
    """The prices (K,) and the flow (K, C) of the cheapest assignment, from prices near it.

    Integers throughout; where bounds cannot be met the flow comes back out of bounds.
    """
    network = _Network(market, prices)
    while network.augment():
        pass
    return network.prices(), network.flow


class _Network:
    """Models 0..K-1 and the outside K, with what a move along each arc would cost now."""

    def __init__(self, market: Market, prices: Ints) -> None:
        whole: Ints = market.costs
        lower, upper = market.lower, market.upper
        models = len(whole)
        self._whole = whole
        self._outside = models
        self.flow = np.zeros_like(whole)
        self.flow[np.argmin(whole - prices[:, None], axis=0), np.arange(whole.shape[1])] = market.counts
        placed = self.flow.sum(axis=1)
        wanted = market.wanted(prices, placed)
        self._lower, self._upper, self._wanted = lower, upper, wanted
        self._excess = np.append(placed - wanted, wanted.sum() - placed.sum())
        self._cost = np.full((models + 1, models + 1), _FAR, np.int64)
        for k in range(models):
            self._renew(k)

    def _renew(self, k: int) -> None:
        """The moves out of model k, to and from the outside."""
        members = np.flatnonzero(self.flow[k])
        self._cost[k, : self._outside] = _FAR
        if len(members):
            self._cost[k, : self._outside] = (self._whole[:, members] - self._whole[k, members]).min(axis=1)
        self._cost[k, self._outside] = 0 if self._wanted[k] < self._upper[k] else _FAR
        self._cost[self._outside, k] = 0 if self._wanted[k] > self._lower[k] else _FAR
        self._cost[k, k] = 0

    def _distances(self, start: Ints) -> tuple[Ints, NDArray[np.intp]]:
        """Bellman and Ford: the cheapest chain from the start to each node, and the node before it."""
        distance = start.copy()
        before = np.full(len(start), -1, np.intp)
        for _ in range(len(start)):
            through = distance[:, None] + self._cost
            via = through.argmin(axis=0)
            shorter = through[via, np.arange(len(start))]
            improved = shorter < distance
            if not improved.any():
                break
            before[improved] = via[improved]
            distance[improved] = shorter[improved]
        return distance, before

    def augment(self) -> bool:
        """Send what one chain can carry from a model with too many to one with too few; False when done."""
        if not self._excess.any():
            return False
        distance, before = self._distances(np.where(self._excess > 0, 0, _FAR))
        distance = np.where(self._excess < 0, distance, _FAR)
        end = int(distance.argmin())
        if distance[end] >= _REACHABLE:
            return False
        chain = [end]
        while before[chain[-1]] >= 0:
            chain.append(int(before[chain[-1]]))
        chain.reverse()
        arcs = [(i, j, self._movers(i, j)) for i, j in itertools.pairwise(chain)]
        amount = min(
            int(self._excess[chain[0]]), -int(self._excess[end]), *(self._capacity(*arc) for arc in arcs)
        )
        for i, j, movers in arcs:
            self._move(i, j, movers, amount)
        self._excess[chain[0]] -= amount
        self._excess[end] += amount
        for k in chain:
            if k != self._outside:
                self._renew(k)
        return True

    def _movers(self, i: int, j: int) -> NDArray[np.intp]:
        """The classes that make the cheapest move from i to j; where equal classes tie, all of them."""
        if self._outside in (i, j):
            return np.zeros(0, np.intp)
        members: NDArray[np.intp] = np.flatnonzero(self.flow[i])
        cheapest: NDArray[np.intp] = members[
            self._whole[j, members] - self._whole[i, members] == self._cost[i, j]
        ]
        return cheapest

    def _capacity(self, i: int, j: int, movers: NDArray[np.intp]) -> int:
        if j == self._outside:
            return int(self._upper[i] - self._wanted[i])
        if i == self._outside:
            return int(self._wanted[j] - self._lower[j])
        return int(self.flow[i, movers].sum())

    def _move(self, i: int, j: int, movers: NDArray[np.intp], amount: int) -> None:
        if j == self._outside:
            self._wanted[i] += amount
        elif i == self._outside:
            self._wanted[j] -= amount
        else:
            sent = np.diff(np.minimum(np.cumsum(self.flow[i, movers]), amount), prepend=0)
            self.flow[i, movers] -= sent
            self.flow[j, movers] += sent

    def prices(self) -> Ints:
        """Prices under which no chain of moves gains: distances, with the outside at 0."""
        distance, _ = self._distances(np.zeros(self._outside + 1, np.int64))
        prices: Ints = distance[: self._outside] - distance[self._outside]
        return prices
