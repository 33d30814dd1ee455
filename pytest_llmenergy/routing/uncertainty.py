"""How far the fits' uncertainty reaches: the interval of a plan's energy, and where it is a coin toss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy import student_t
from pytest_llmenergy.analysis import forms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.energy_model import EnergyModel
    from pytest_llmenergy.routing.problem import Problem
    from pytest_llmenergy.routing.solve import Solution

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toss:
    """Two models between which it is a coin toss, and for which queries."""

    models: tuple[str, str]
    queries: int
    tokens_in: tuple[int, int]  # the fewest and the most of these queries
    tokens_out: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoinToss:
    """The queries whose two cheapest models the fits cannot tell apart."""

    queries: int
    energy_j: float  # of these queries in the plan
    between: tuple[Toss, ...] = ()  # most queries first


def _knows_its_error(fit: EnergyModel) -> bool:
    return fit.covariance is not None and fit.residual_scale is not None and bool(fit.df_resid)


def energy_half_width_j(problem: Problem, flow: Ints, confidence: float) -> float | None:
    """Half the width of the interval of an assignment's energy; None where a fit does not know its error.

    A model's coefficients are wrong for all its queries at once, so their error adds up over queries; the
    residual of a class is its own. Models err independently of each other.
    """
    squares = 0.0
    for k, host in enumerate(problem.hosts):
        served = np.flatnonzero(flow[k])
        if not len(served):
            continue
        fit = host.energy
        if not _knows_its_error(fit):
            return None
        pairs = problem.workload.tokens_in[served], problem.workload.tokens_out[served]
        calls = flow[k, served] / (fit.batch_size or 1)
        slope = calls @ forms.design(tuple(fit.coefficients), *pairs)
        residual = np.full(len(served), fit.residual_scale or 0.0)
        if fit.relative:
            residual = residual * fit.predict(*pairs).mean
        variance = slope @ np.asarray(fit.covariance) @ slope + np.sum((calls * residual) ** 2)
        squares += student_t.quantile(confidence, fit.df_resid or 1) ** 2 * float(variance)
    return float(np.sqrt(squares))


def coin_toss(problem: Problem, solution: Solution, zeta: float, confidence: float) -> CoinToss | None:
    """Where the two cheapest models of a class, at the plan's prices, differ by less than their intervals.

    None where a fit does not know its error.
    """
    if not all(_knows_its_error(host.energy) for host in problem.hosts) or len(problem.hosts) == 1:
        return None
    pairs = problem.workload.tokens_in, problem.workload.tokens_out
    half_j = np.empty_like(problem.energy_j)
    for k, host in enumerate(problem.hosts):
        predicted = host.energy.predict(*pairs, interval=confidence)
        if predicted.high is None:
            return None
        half_j[k] = (predicted.high - predicted.mean) / (host.energy.batch_size or 1)
    reduced = problem.costs(zeta) - solution.prices[:, None]
    first, second = np.argsort(reduced, axis=0)[:2]
    at = np.arange(reduced.shape[1])
    margin = reduced[second, at] - reduced[first, at]
    unsure = margin < zeta / problem.energy_scale_j * np.hypot(half_j[first, at], half_j[second, at])
    return CoinToss(
        queries=int(problem.workload.counts[unsure].sum()),
        energy_j=float(np.vdot(solution.flow[:, unsure], problem.energy_j[:, unsure])),
        between=_between(problem, np.flatnonzero(unsure), np.sort(np.stack([first, second]), axis=0)),
    )


def _between(problem: Problem, unsure: NDArray[np.intp], pairs: NDArray[np.intp]) -> tuple[Toss, ...]:
    workload = problem.workload
    tosses = []
    for i, j in np.unique(pairs[:, unsure], axis=1).T.tolist():
        which = unsure[(pairs[0, unsure] == i) & (pairs[1, unsure] == j)]
        tokens_in, tokens_out = workload.tokens_in[which], workload.tokens_out[which]
        tosses.append(
            Toss(
                models=(problem.models[i], problem.models[j]),
                queries=int(workload.counts[which].sum()),
                tokens_in=(int(tokens_in.min()), int(tokens_in.max())),
                tokens_out=(int(tokens_out.min()), int(tokens_out.max())),
            )
        )
    return tuple(sorted(tosses, key=lambda toss: -toss.queries))
