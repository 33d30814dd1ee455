"""The plan document: what was decided, the proof, and all a router needs to go on deciding so.

History of the format:
  llmenergy.plan/1  the first.
"""

from __future__ import annotations

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

    from pytest_llmenergy.routing.baselines import Baseline
    from pytest_llmenergy.routing.frontier import Point
    from pytest_llmenergy.routing.problem import Problem, Totals

PLAN_SCHEMA = "llmenergy.plan/1"
_TIE = 1e-12  # of the largest cost: margins that floats cannot tell from 0


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
    toss = coin_toss(problem, solution, point.zeta, confidence)
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
        "energy_bound_j": point.energy_bound_j,
        "accuracy_bound": point.accuracy_bound,
        "prices": dict(zip(problem.models, solution.prices.tolist(), strict=True)),
        "ties": tie_shares(problem, point),
        "solve_s": point.solve_s,
    }


def tie_shares(problem: Problem, point: Point) -> list[dict[str, Any]]:
    """Of queries whose cheapest models tie, how many the plan sends to each."""
    reduced = problem.costs(point.zeta) - point.solution.prices[:, None]
    reduced -= reduced.min(axis=0)
    tied = reduced <= _TIE * max(1.0, float(np.abs(point.solution.prices).max()))
    at = np.flatnonzero(tied.sum(axis=0) > 1)
    groups: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}
    for c in at:
        key = tuple(np.flatnonzero(tied[:, c]).tolist())
        groups[key] = groups.get(key, 0) + point.solution.flow[:, c]
    return [
        {"models": {problem.models[k]: int(sums[k]) for k in key}} for key, sums in sorted(groups.items())
    ]


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
        raise DocumentError(path, f"has schema {document.get('schema')!r}; this version reads {PLAN_SCHEMA!r}.")
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
