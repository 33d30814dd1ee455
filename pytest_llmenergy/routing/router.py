"""A plan used while serving: the K prices of its solution are a policy for queries nobody has seen.

Routing by the prices of a linear program is known for online matching (Devanur and Hayes, EC 2009) and for LLMs
(PORT, OmniRouter); here the prices are those of a proved optimum of the energy model.
"""

from __future__ import annotations

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

_TIE = 1e-12
_GOLDEN = 0.6180339887498949  # multiples of it, less their whole part, fill [0, 1) evenly


class Router:
    """Sends each query to the model with the least cost less price, in O(K).

    Queries whose cheapest models tie are dealt between these as the plan dealt its own.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        *,
        zeta: float,
        prices: Mapping[str, float],
        energy_scale_j: float,
        accuracy_scale: float,
        ties: Sequence[Mapping[str, Mapping[str, int]]] = (),
        lengths: OutputLengths | None = None,
    ) -> None:
        self.models = tuple(host.name for host in hosts)
        self._hosts = tuple(hosts)
        self._prices = np.array([prices[name] for name in self.models])
        self._energy = zeta / energy_scale_j
        self._accuracy = np.array([(1 - zeta) * host.accuracy / accuracy_scale for host in hosts])
        self._tie = _TIE * max(1.0, float(np.abs(self._prices).max()))
        self._ties = {frozenset(tie["models"]): tie["models"] for tie in ties}
        self._dealt: dict[frozenset[str], int] = {}
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
            RequestError: it has no such point, or several and none was named.
        """
        document = plan if not isinstance(plan, (str, Path)) else read_plan(Path(plan))
        points = document["points"]
        known = ", ".join(f"{point['zeta']:g}" for point in points)
        if zeta is None and len(points) > 1:
            raise RequestError(f"the plan has {len(points)} points; say which zeta: {known}.")
        found = [point for point in points if zeta is None or abs(point["zeta"] - zeta) < _TIE]
        if not found:
            raise RequestError(f"the plan has no point at zeta {zeta:g}; it has {known}.")
        if found[0].get("prices") is None:
            raise RequestError(
                "this point has no prices: PuLP's integer program gives none. Plan with --solver prices."
            )
        return cls(
            hosts_of(document),
            zeta=found[0]["zeta"],
            prices=found[0]["prices"],
            energy_scale_j=document["energy_scale_j"],
            accuracy_scale=document["accuracy_scale"],
            ties=found[0].get("ties", ()),
            lengths=lengths,
        )

    def costs(self, tokens_in: ArrayLike, tokens_out: ArrayLike) -> NDArray[np.float64]:
        """Cost less price of queries at each model, (K, n)."""
        t, n = np.atleast_1d(np.asarray(tokens_in)), np.atleast_1d(np.asarray(tokens_out))
        energy_j = np.maximum(np.stack([host.energy_of(t, n) for host in self._hosts]), 0)
        gain = np.multiply.outer(self._accuracy, t + n)
        costs: NDArray[np.float64] = self._energy * energy_j - gain - self._prices[:, None]
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
            costs = self.costs(tokens_in, tokens_out)[:, 0]
        elif self._lengths is None:
            raise RequestError("tokens_out is not known. Give it, or give the router `lengths`.")
        else:
            outs, chances = self._lengths.given(tokens_in)
            costs = self.costs(np.full(len(outs), tokens_in), outs) @ chances
        tied = np.flatnonzero(costs <= costs.min() + self._tie)
        return self.models[int(tied[0])] if len(tied) == 1 else self._deal(tied)

    def _deal(self, tied: NDArray[np.intp]) -> str:
        names = [self.models[k] for k in tied]
        shares = self._ties.get(frozenset(names), {})
        total = sum(shares.get(name, 0) for name in names)
        if not total:
            return names[0]
        turn = self._dealt[frozenset(names)] = self._dealt.get(frozenset(names), 0) + 1
        left = turn * _GOLDEN % 1 * total
        for name in names:
            left -= shares.get(name, 0)
            if left < 0:
                return name
        return names[-1]

    def route_classes(
        self, tokens_in: ArrayLike, tokens_out: ArrayLike, counts: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Route many classes of queries at once; (K, C), queries of each class at each model."""
        costs = self.costs(tokens_in, tokens_out)
        tied = costs <= costs.min(axis=0) + self._tie
        flow = np.zeros(costs.shape, np.int64)
        alone = tied.sum(axis=0) == 1
        flow[costs.argmin(axis=0)[alone], np.flatnonzero(alone)] = counts[alone]
        for c in np.flatnonzero(~alone):
            for _ in range(int(counts[c])):
                flow[self.models.index(self._deal(np.flatnonzero(tied[:, c]))), c] += 1
        return flow
