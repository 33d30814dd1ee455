"""Does the policy hold? Plan on a random half of the workload, route the other half by the prices alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.plan import bound_shares, price_steps
from pytest_llmenergy.routing.problem import largest_remainder
from pytest_llmenergy.routing.router import Policy, Router

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.routing.problem import Problem, Totals

    Ints = NDArray[np.int64]

_BATCH = 32  # queries that see the same prices
_MOST_SIMULATED = 100_000  # queries: more tell nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out half, routed by the prices of the other, beside its own offline optimum."""

    zeta: float
    queries: int
    routed: Totals
    optimum: Totals

    @property
    def energy_change(self) -> float:
        """Relative to the optimum; can be below 0, for the policy need not meet the shares to the query."""
        return self.routed.energy_j / self.optimum.energy_j - 1 if self.optimum.energy_j else 0.0

    @property
    def accuracy_change(self) -> float:
        """Relative to the optimum."""
        return self.routed.accuracy / self.optimum.accuracy - 1 if self.optimum.accuracy else 0.0


def hold_out(problem: Problem, zeta: float, *, seed: int) -> HeldOut:
    """Split the workload in two by chance, plan on one half and route the other.

    Raises:
        RequestError: there are too few queries to split.
    """
    counts = problem.workload.counts
    half = problem.workload.queries // 2
    if half < len(problem.hosts):
        raise RequestError(
            f"a workload of {problem.workload.queries} is too small to hold half of it out. "
            "Give a longer one, or leave --held-out out."
        )
    rng = np.random.default_rng(seed)
    kept = rng.multivariate_hypergeometric(counts, half, method="marginals")
    seen = _part(problem, kept)
    coming = np.repeat(np.arange(len(counts)), counts - kept)
    rng.shuffle(coming)
    coming = coming[:_MOST_SIMULATED]
    unseen = _part(problem, np.bincount(coming, minlength=len(counts)).astype(np.int64))
    plan = plan_at(seen, zeta)
    router = Router(
        problem.hosts,
        Policy(
            zeta=zeta,
            prices=plan.solution.prices,
            shares=bound_shares(seen, plan.solution),
            steps=price_steps(seen, zeta, plan.solution),
            queries=seen.workload.queries,
            energy_scale_j=problem.energy_scale_j,
            accuracy_scale=problem.accuracy_scale,
        ),
    )
    costs = router.costs(problem.workload.tokens_in, problem.workload.tokens_out)
    flow = np.zeros(costs.size, np.int64)
    for batch in np.array_split(coming, -(-len(coming) // _BATCH)):
        chosen = router.place(costs[:, batch])
        flow += np.bincount(chosen * len(counts) + batch, minlength=costs.size)
    return HeldOut(
        zeta=zeta,
        queries=len(coming),
        routed=unseen.totals(flow.reshape(costs.shape)),
        optimum=plan_at(unseen, zeta, prices=plan.solution.prices).totals,
    )


def _part(problem: Problem, counts: Ints) -> Problem:
    """The problem of some of the queries: the classes and so the normalisation stay; shares in proportion."""
    queries, part = problem.workload.queries, int(counts.sum())
    if (problem.lower == problem.upper).all():
        lower = upper = largest_remainder((problem.lower / queries).tolist(), part)
    else:
        lower = np.minimum(problem.lower, problem.lower * part // queries + 1)
        upper = -(-problem.upper * part // queries)
    return replace(
        problem, workload=replace(problem.workload, counts=counts, path=None), lower=lower, upper=upper
    )
