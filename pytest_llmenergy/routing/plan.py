"""The plan document: what was decided, the proof, and all a router needs to go on deciding so.

History of the format:
  llmenergy.plan/1  the first.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from pytest_llmenergy.analysis.energy_model import EnergyModel
from pytest_llmenergy.errors import DocumentError
from pytest_llmenergy.routing.hosts import Host
from pytest_llmenergy.routing.uncertainty import coin_toss, energy_half_width_j

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.baselines import Baseline
    from pytest_llmenergy.routing.frontier import Point
    from pytest_llmenergy.routing.problem import Problem, Totals
    from pytest_llmenergy.routing.solve import Solution

    Floats = NDArray[np.float64]

PLAN_SCHEMA = "llmenergy.plan/1"
_STEP_SHARE = 0.01


def plan_document(
    problem: Problem,
    points: Sequence[Point],
    baselines: Sequence[Baseline] = (),
    *,
    confidence: float = 0.95,
    **more: Any,
) -> dict[str, Any]:
    """A plan as JSON; energies in J, times in s, unknown is null."""
    hosts = problem.hosts
    return {
        "schema": PLAN_SCHEMA,
        "queries": problem.workload.queries,
        "classes": len(problem.workload.counts),
        "models": list(problem.models),
        "accuracies": {host.name: host.accuracy for host in hosts},
        "metric": hosts[0].energy.metric,
        "shares": {
            host.name: {"least": int(low), "most": int(high)}
            for host, low, high in zip(hosts, problem.lower, problem.upper, strict=True)
        },
        "energy_scale_j": problem.energy_scale_j,
        "accuracy_scale": problem.accuracy_scale,
        "queries_outside_fitted_range": problem.outside,
        "pairs_of_negative_energy": problem.negative_pairs,
        "confidence": confidence,
        "fits": [_fit_entry(host.name, fit) for host in hosts for fit in (host.energy, host.runtime) if fit],
        "points": [point_entry(problem, point, confidence) for point in points],
        "baselines": [_baseline_entry(problem, baseline) for baseline in baselines],
        **more,
    }


def totals_entry(problem: Problem, totals: Totals) -> dict[str, Any]:
    """Sums over the workload."""
    return {
        "energy_j": totals.energy_j,
        "runtime_s": totals.runtime_s,
        "accuracy": totals.accuracy,
        "counts": {name: int(n) for name, n in zip(problem.models, totals.counts, strict=True)},
    }


def point_entry(problem: Problem, point: Point, confidence: float) -> dict[str, Any]:
    """One optimal plan: sums over the workload, the certificate, the prices, and what the fits leave open."""
    solution, totals = point.solution, point.totals
    half_j = energy_half_width_j(problem, solution.flow, confidence)
    priced = bool(np.isfinite(solution.prices).all())
    toss = coin_toss(problem, solution, point.zeta, confidence) if priced else None
    return {
        "zeta": float(point.zeta),
        "status": solution.status,
        "objective": solution.objective,
        "dual_bound": solution.dual_bound,
        "gap": solution.gap,
        **totals_entry(problem, totals),
        "energy_low_j": None if half_j is None else totals.energy_j - half_j,
        "energy_high_j": None if half_j is None else totals.energy_j + half_j,
        "coin_toss_queries": None if toss is None else toss.queries,
        "coin_toss_energy_j": None if toss is None else toss.energy_j,
        "coin_toss_between": None if toss is None else [asdict(pair) for pair in toss.between],
        "energy_bound_j": point.energy_bound_j,
        "accuracy_bound": point.accuracy_bound,
        "prices": _by_model(problem, solution.prices) if priced else None,
        "bound_shares": _by_model(problem, bound_shares(problem, solution)),
        "price_steps": _by_model(problem, price_steps(problem, point.zeta, solution)) if priced else None,
        "solve_s": point.solve_s,
    }


def _by_model(problem: Problem, values: Floats) -> dict[str, float | None]:
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(problem.models, values, strict=True)
    }


def bound_shares(problem: Problem, solution: Solution) -> Floats:
    """The shares of the models that a bound holds where they are, (K,); NaN for the others."""
    at_bound = (solution.counts == problem.lower) | (solution.counts == problem.upper)
    held = at_bound & ((solution.prices != 0) | (problem.lower == problem.upper))
    return np.where(held, solution.counts / problem.workload.queries, np.nan)


def price_steps(problem: Problem, zeta: float, solution: Solution) -> Floats:
    """How far each price has to move to send about 1 % of the queries to or from its model, (K,)."""
    reduced = problem.costs(zeta) - solution.prices[:, None]
    counts = problem.workload.counts
    steps = np.zeros(len(reduced))
    for k in range(len(reduced)) if len(reduced) > 1 else ():
        margin = np.abs(reduced[k] - np.delete(reduced, k, axis=0).min(axis=0))
        order = np.argsort(margin)
        margin = margin[order]
        at = np.searchsorted(np.cumsum(counts[order]), _STEP_SHARE * counts.sum())
        steps[k] = margin[at] if np.isfinite(margin[at]) else 0.0
    return steps


def _baseline_entry(problem: Problem, baseline: Baseline) -> dict[str, Any]:
    rival = baseline.rival
    return {
        "name": baseline.name,
        **totals_entry(problem, baseline.totals),
        "zeta_at_equal_accuracy": None if rival is None else rival.zeta,
        "energy_at_equal_accuracy_j": None if rival is None else rival.totals.energy_j,
        "saving_at_equal_accuracy": baseline.saving,
    }


def _fit_entry(name: str, fit: EnergyModel) -> dict[str, Any]:
    """A fit as fits.json has it, so that a plan needs no other file."""
    fields = {field: getattr(fit, field) for field in EnergyModel.__slots__}
    fields["coefficients"] = {term: {"value": value} for term, value in fit.coefficients.items()}
    return {"host": name, **fields}


def read_plan(path: Path) -> dict[str, Any]:
    """Read a plan document.

    Raises:
        DocumentError: it is missing, no JSON, of another schema, or has no point.
    """
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror}).") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DocumentError(path, f"is not a plan document: {error}.") from error
    if document.get("schema") != PLAN_SCHEMA:
        raise DocumentError(
            path, f"has schema {document.get('schema')!r}; this version reads {PLAN_SCHEMA!r}."
        )
    if not document.get("points"):
        raise DocumentError(path, "has no points.", "Make one with `llmenergy-report route --json PLAN`.")
    return document


def hosts_of(document: Mapping[str, Any]) -> tuple[Host, ...]:
    """The models of a plan document, with their fits."""
    fits: dict[tuple[str, bool], EnergyModel] = {}
    for entry in document["fits"]:
        fields = {name: entry[name] for name in EnergyModel.__slots__ if name in entry}
        fields["coefficients"] = {term: part["value"] for term, part in entry["coefficients"].items()}
        for name in ("tokens_in_range", "tokens_out_range"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        fits[entry["host"], entry["metric"] == "runtime_s"] = EnergyModel(**fields)
    return tuple(
        Host(
            name=name,
            accuracy=document["accuracies"][name],
            energy=fits[name, False],
            runtime=fits.get((name, True)),
        )
        for name in document["models"]
    )
