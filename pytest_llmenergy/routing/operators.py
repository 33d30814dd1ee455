"""What operators ask beyond the paper: capacities, instances in a GPU budget, latency; as rows on classes."""

from __future__ import annotations

import bisect
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy import units
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.conflicts import conflict_message, smallest_conflict
from pytest_llmenergy.routing.frontier import Point
from pytest_llmenergy.routing.problem import check_zeta
from pytest_llmenergy.routing.program import WholePlan, solve_program
from pytest_llmenergy.routing.rows import ClassProgram, Hosting, Row
from pytest_llmenergy.routing.solve import InfeasibleError, Solution, solve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.hosts import Host
    from pytest_llmenergy.routing.problem import Problem

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Capacities for the whole workload, by model; an empty one limits nothing."""

    tokens: Mapping[str, float] = field(default_factory=dict)  # tokens_in + tokens_out
    gpu_s: Mapping[str, float] = field(default_factory=dict)  # GPU-seconds
    gpus_each: Mapping[str, int] = field(default_factory=dict)  # GPUs of one instance
    gpu_budget: int | None = None  # GPUs in all: how many instances of each model is then decided too
    horizon_s: float | None = None  # by when an instance has to be through with its queries

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self.tokens or self.gpu_s or self.gpu_budget is not None)


def check_limits(limits: Limits, hosts: Sequence[Host]) -> None:
    """Refuse limits of models that are not there, or without what they are counted in.

    Raises:
        RequestError: so.
    """
    names = [host.name for host in hosts]
    for option, given in (
        ("--capacity-tokens", limits.tokens),
        ("--capacity-gpu-s", limits.gpu_s),
        ("--gpus", limits.gpus_each),
    ):
        fewest = 1 if option == "--gpus" else 0
        for name, value in given.items():
            if name not in names:
                raise RequestError(f"{option} {name}: no such model. There are {', '.join(names)}.")
            if not fewest <= value < math.inf:
                raise RequestError(f"{option} {name}={value:g} is out of range. Give at least {fewest}.")
    _check_gpu_seconds(limits, hosts)
    if limits.gpu_budget is None:
        if limits.horizon_s is not None:
            raise RequestError("--horizon says nothing without --gpu-budget. Give both, or neither.")
        return
    if limits.gpu_budget < 1:
        raise RequestError(f"--gpu-budget {limits.gpu_budget}: give at least one GPU.")
    if limits.horizon_s is None or not 0 < limits.horizon_s < math.inf:
        raise RequestError("--gpu-budget needs --horizon: the seconds within which the workload is served.")


def _check_gpu_seconds(limits: Limits, hosts: Sequence[Host]) -> None:
    for host in hosts:
        if limits.gpu_budget is None and host.name not in limits.gpu_s:
            continue
        if host.runtime is None:
            raise RequestError(
                f"GPU-seconds need a fit of runtime_s for {host.name}. Add it (`llmenergy-report fit`)."
            )
        if gpus_of(host, limits) is None:
            raise RequestError(
                f"how many GPUs one instance of {host.name} takes is not known. "
                f"Give --gpus {host.name}=1, say."
            )


def gpus_of(host: Host, limits: Limits) -> int | None:
    """GPUs of one instance: as given, else as fitted."""
    return limits.gpus_each.get(host.name, host.n_gpus)


def share_rows(problem: Problem, counts: Ints) -> list[Row]:
    """The bounds on queries a model, as rows."""
    rows = []
    classes = len(counts)
    queries = int(counts.sum())
    for k, (low, high) in enumerate(zip(problem.lower.tolist(), problem.upper.tolist(), strict=True)):
        name = problem.models[k]
        ones = np.ones((1, classes))
        if low > 0:
            label = f"at least {low} of {queries} queries to {name}"
            rows.append(Row(label=label, options=(k,), weights=ones, lower=low))
        if high < queries:
            label = f"at most {high} of {queries} queries to {name}"
            rows.append(Row(label=label, options=(k,), weights=ones, upper=high))
    return rows


def limit_rows(problem: Problem, limits: Limits) -> list[Row]:
    """Capacities as rows."""
    rows = []
    tokens = problem.tokens[None]
    for k, host in enumerate(problem.hosts):
        if host.name in limits.tokens:
            most = limits.tokens[host.name]
            label = f"--capacity-tokens {host.name}={most:g}"
            rows.append(Row(label=label, options=(k,), weights=tokens, upper=most))
        if problem.runtime_s is None:
            continue
        runtime_s = problem.runtime_s[k][None]
        if host.name in limits.gpu_s:
            most = limits.gpu_s[host.name]
            label = f"--capacity-gpu-s {host.name}={most:g}"
            weights = runtime_s * (gpus_of(host, limits) or 1)
            rows.append(Row(label=label, options=(k,), weights=weights, upper=most))
        if limits.gpu_budget is not None:
            label = f"--horizon {limits.horizon_s:g} s on {host.name}"
            rows.append(
                Row(label=label, options=(k,), weights=runtime_s, upper=limits.horizon_s, instance_of=k)
            )
            # A query that is predicted to take no time needs an instance all the same.
            ones, queries = np.ones_like(runtime_s), float(problem.workload.queries)
            rows.append(
                Row(label=f"{host.name} hosted", options=(k,), weights=ones, upper=queries, instance_of=k)
            )
    return rows


def plan_within(problem: Problem, zeta: float, limits: Limits) -> tuple[Point, WholePlan]:
    """The plan under capacities: the objective, its bound and the gap between them.

    Raises:
        InfeasibleError: the constraints cannot hold together.
    """
    check_zeta(zeta)
    start_s = time.perf_counter()
    costs = problem.costs(zeta)
    counts = problem.workload.counts
    hosting = None
    if limits.gpu_budget is not None:
        hosting = Hosting(
            gpus_each=tuple(gpus_of(host, limits) or 1 for host in problem.hosts),
            budget=limits.gpu_budget,
            label=f"--gpu-budget {limits.gpu_budget}",
        )
    free = np.where(np.isfinite(costs), costs, 0.0) if problem.allowed is not None else None
    whole = solve_program(
        ClassProgram(
            costs=costs,
            counts=counts,
            rows=(*share_rows(problem, counts), *limit_rows(problem, limits)),
            hosting=hosting,
            free_costs=free,
            forbids=latency_label(problem),
        )
    )
    solution = Solution(
        flow=whole.flow,
        prices=np.full(len(costs), np.nan),
        objective=whole.objective,
        dual_bound=whole.dual_bound,
        status="within-gap",
    )
    solve_s = time.perf_counter() - start_s
    return Point(zeta=zeta, solution=solution, totals=problem.totals(whole.flow), solve_s=solve_s), whole


def explain_infeasible(problem: Problem) -> str:
    """Which of the shares and the latency limit cannot hold together, and with which latency they could."""
    counts = problem.workload.counts
    queries = int(counts.sum())
    rows = share_rows(problem, counts)
    latency = latency_label(problem)

    def feasible(labels: frozenset[str], allowed: NDArray[np.bool_] | None = problem.allowed) -> bool:
        lower, upper = np.zeros(len(problem.hosts), np.int64), np.full(len(problem.hosts), queries)
        for row in rows:
            if row.label in labels and row.lower is not None:
                lower[row.options[0]] = int(row.lower)
            elif row.label in labels and row.upper is not None:
                upper[row.options[0]] = int(row.upper)
        costs = np.zeros(problem.energy_j.shape)
        if allowed is not None and latency in labels:
            costs = np.where(allowed, costs, np.inf)
        try:
            solve(costs, counts, lower, upper)
        except InfeasibleError:
            return False
        return True

    labels = [row.label for row in rows] + [latency] * (problem.allowed is not None)
    found = smallest_conflict(labels, feasible)
    message = conflict_message(found)
    call_s, allowed = problem.call_s, problem.allowed
    if allowed is None or call_s is None or latency not in found:
        return message
    served = [
        f"{name} can serve {int(counts[allowed[k]].sum())} of them in time"
        for k, name in enumerate(problem.models)
        if any(name in label for label in found)
    ]
    # What a latency leaves possible a longer one does, too.
    steps_s = np.unique(call_s).tolist()
    everything = frozenset(labels)
    first = bisect.bisect_left(steps_s, x=True, key=lambda step_s: feasible(everything, call_s <= step_s))
    return (
        f"{message} {'; '.join(served)}. "
        f"The shares can be kept from --latency-at-most {units.round_up(steps_s[first]):g} on."
    )


def latency_label(problem: Problem) -> str:
    """What the latency limit is called in messages."""
    return f"--latency-at-most {problem.latency_s or 0:g}"
