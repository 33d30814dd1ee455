"""A plan used while serving: the K prices of its solution are a policy for queries nobody has seen.

Routing by the prices of a linear program is known for online matching (Devanur and Hayes, EC 2009) and for
LLMs (PORT, OmniRouter); here the prices are those of a proved optimum of the energy model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.plan import hosts_of, read_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from pytest_llmenergy.routing.hosts import Host
    from pytest_llmenergy.routing.lengths import OutputLengths

    Floats = NDArray[np.float64]

_SAME_ZETA = 1e-12
_LAG = 2e-4  # of the plan's queries: so many too few or too many move a price by one step


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a router needs of a plan's point; by model, in order."""

    zeta: float
    prices: Floats
    shares: Floats  # of the queries; NaN where the plan leaves the model's count open
    steps: Floats  # in units of cost: a price moved so far sends about 1 % of the queries elsewhere
    queries: int
    energy_scale_j: float
    accuracy_scale: float


class Router:
    """Sends each query to the model with the least cost less price, in O(K).

    Where the plan binds a model's share, its price leans a little against the lag of its count, so that
    shares hold for the queries that come and not only on average.
    """

    def __init__(
        self, hosts: Sequence[Host], policy: Policy, *, lengths: OutputLengths | None = None
    ) -> None:
        self.models = tuple(host.name for host in hosts)
        self._hosts = tuple(hosts)
        self._policy = policy
        self._energy = policy.zeta / policy.energy_scale_j
        accuracies = np.array([host.accuracy for host in hosts])
        self._accuracy = (1 - policy.zeta) / policy.accuracy_scale * accuracies
        self._bound = ~np.isnan(policy.shares)
        self._shares = np.where(self._bound, policy.shares, 0.0)
        self._placed = np.zeros(len(hosts))
        self._lengths = lengths

    @classmethod
    def from_plan(
        cls,
        plan: Path | str | Mapping[str, Any],
        *,
        zeta: float | None = None,
        lengths: OutputLengths | None = None,
    ) -> Self:
        """The policy of a plan document.

        Args:
            plan: the document, or its file.
            zeta: which of its points; may be left out where there is one.
            lengths: what tokens_out is likely to be, for queries that come without it.

        Raises:
            DocumentError: it is no plan document.
            RequestError: it has no such point, several and none was named, or one without prices.
        """
        document = plan if not isinstance(plan, (str, Path)) else read_plan(Path(plan))
        points = document["points"]
        known = ", ".join(f"{point['zeta']:g}" for point in points)
        if zeta is None and len(points) > 1:
            raise RequestError(f"the plan has {len(points)} points; say which zeta: {known}.")
        found = [point for point in points if zeta is None or abs(point["zeta"] - zeta) < _SAME_ZETA]
        if not found:
            raise RequestError(f"the plan has no point at zeta {zeta:g}; it has {known}.")
        point = found[0]
        if point.get("prices") is None:
            raise RequestError(
                "this plan has no prices, for it keeps capacities that weigh queries differently. "
                "Plan with shares to get a policy."
            )
        names = document["models"]
        shares = [point["bound_shares"][name] for name in names]
        policy = Policy(
            zeta=point["zeta"],
            prices=np.array([point["prices"][name] for name in names]),
            shares=np.array([np.nan if share is None else share for share in shares]),
            steps=np.array([point["price_steps"][name] for name in names]),
            queries=document["queries"],
            energy_scale_j=document["energy_scale_j"],
            accuracy_scale=document["accuracy_scale"],
        )
        return cls(hosts_of(document), policy, lengths=lengths)

    def costs(self, tokens_in: ArrayLike, tokens_out: ArrayLike) -> Floats:
        """Equation 2 of queries at each model, (K, n), without prices."""
        t, n = np.atleast_1d(np.asarray(tokens_in)), np.atleast_1d(np.asarray(tokens_out))
        energy_j = np.maximum(np.stack([host.energy_of(t, n) for host in self._hosts]), 0)
        costs: Floats = self._energy * energy_j - np.multiply.outer(self._accuracy, t + n)
        return costs

    def route(self, tokens_in: int, tokens_out: int | None = None) -> str:
        """The model for a query.

        Args:
            tokens_in: prompt tokens.
            tokens_out: generated tokens; None when not known, which needs the router's `lengths`.

        Raises:
            RequestError: a token count is negative, or tokens_out is unknown to the router too.
        """
        if tokens_in < 0 or (tokens_out is not None and tokens_out < 0):
            raise RequestError(f"a query of {tokens_in}, {tokens_out} tokens: counts start at 0.")
        if tokens_out is not None:
            costs = self.costs(tokens_in, tokens_out)
        elif self._lengths is None:
            raise RequestError("tokens_out is not known. Give it, or give the router `lengths`.")
        else:
            outs, chances = self._lengths.given(tokens_in)
            costs = (self.costs(np.full(len(outs), tokens_in), outs) @ chances)[:, None]
        return self.models[int(self.place(costs)[0])]

    def place(self, costs: Floats) -> NDArray[np.intp]:
        """The model of each query, by their costs (K, n); all see the prices of the first."""
        chosen: NDArray[np.intp] = (costs - self._prices_now()[:, None]).argmin(axis=0)
        self._placed += np.bincount(chosen, minlength=len(self.models))
        return chosen

    def _prices_now(self) -> Floats:
        lag = self._shares * self._placed.sum() - self._placed
        lean = lag / max(1.0, _LAG * self._policy.queries)
        prices: Floats = self._policy.prices + np.where(self._bound, self._policy.steps * lean, 0.0)
        return prices
