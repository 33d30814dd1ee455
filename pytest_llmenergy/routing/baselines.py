"""What Figure 3 of the paper compares with: plans that know nothing of zeta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.frontier import Point, at_accuracy
from pytest_llmenergy.routing.solve import InfeasibleError
from pytest_llmenergy.routing.workload import class_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.problem import Problem, Totals

    Ints = NDArray[np.int64]

_EQUAL_ACCURACY = 0.005  # half a point of A_K


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One way to route without looking at the query, and what the optimum saves at its accuracy."""

    name: str
    totals: Totals
    rival: (
        Point | None
    )  # the cheapest plan at least as accurate; None where the shares allow none of that accuracy

    @property
    def saving(self) -> float | None:
        """The part of the baseline's energy that the rival does without."""
        if self.rival is None or not self.totals.energy_j:
            return None
        return 1 - self.rival.totals.energy_j / self.totals.energy_j


def baselines(problem: Problem, *, seed: int, known: Sequence[Point] = ()) -> list[Baseline]:
    """Each model alone, round robin in the workload's order, and each query to a random model."""
    found = []
    for name, flow in _flows(problem, seed):
        totals = problem.totals(flow)
        found.append(Baseline(name=name, totals=totals, rival=_rival(problem, totals, known)))
    return found


def _rival(problem: Problem, totals: Totals, known: Sequence[Point]) -> Point | None:
    try:
        rival = at_accuracy(problem, totals.accuracy, known)
    except InfeasibleError:
        raise
    except RequestError:
        return None
    # Shares can make every plan far more accurate than the baseline: nothing to compare at its accuracy.
    return rival if rival.totals.accuracy - totals.accuracy <= _EQUAL_ACCURACY else None


def _flows(problem: Problem, seed: int) -> Iterator[tuple[str, Ints]]:
    counts = problem.workload.counts
    models = len(problem.hosts)
    for k, host in enumerate(problem.hosts):
        alone = np.zeros((models, len(counts)), np.int64)
        alone[k] = counts
        yield host.name, alone
    yield "round-robin", round_robin(problem)
    # As many throws of a fair die as a class has queries.
    throws = np.random.default_rng(seed).multinomial(counts, np.full(models, 1 / models))
    yield "random", np.ascontiguousarray(throws.T)


def round_robin(problem: Problem) -> Ints:
    """Query i to model i mod K, in the order of the workload; (K, C)."""
    models, classes = problem.energy_j.shape
    flow = np.zeros(models * classes, np.int64)
    start = 0
    for where in class_rows(problem.workload):
        turn = (start + np.arange(len(where))) % models
        flow += np.bincount(turn * classes + where, minlength=len(flow))
        start += len(where)
    return flow.reshape(models, classes)
