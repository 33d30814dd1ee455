"""Routing under constraints that weigh queries differently: a linear program on classes by PuLP, made whole.

A capacity in tokens or GPU-seconds, or instances that have to fit a GPU budget, take the transportation
structure away: the relaxation leaves a few classes in parts. Its multipliers price every option of every
class, which gives a lower bound for the whole workload (weak duality), settles all classes but the near
ties, and leaves these to a small integer program. What is reported is its objective, the bound, and the gap
that remains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.routing.conflicts import conflict_message, smallest_conflict
from pytest_llmenergy.routing.relaxation import relax, whole
from pytest_llmenergy.routing.solve import InfeasibleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.routing.rows import ClassProgram

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_FEW_VARIABLES = 2_000  # of a relaxation that only has to say whether it is feasible
_NEAR_TIES = 64  # classes of the first integer program
_GROWTH = 4
_MOST_NEAR_TIES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class WholePlan:
    """A whole assignment and what bounds it."""

    flow: Ints  # (J, C)
    objective: float
    dual_bound: float  # no whole assignment costs less
    instances: Ints | None  # (K,)
    multipliers: dict[str, float]  # of the rows, by label: what one more unit of each would save


def solve_program(program: ClassProgram) -> WholePlan:
    """A near-optimal whole assignment with its bound.

    Raises:
        InfeasibleError: the constraints cannot hold together; the message names a smallest set that cannot.
    """
    program = _only_possible(program)
    relaxed = relax(program)
    if relaxed is None:
        raise InfeasibleError(_conflict(program))
    multipliers, instances = relaxed
    if program.hosting is not None:
        # Instances, once decided, are capacities like any other; the bound stays that of any instances.
        fixed = _with_instances(program, instances)
        tighter = relax(fixed)
        bound = _bound(program, multipliers)
        if tighter is not None:
            multipliers = tighter[0]
    else:
        fixed, bound = program, _bound(program, multipliers)
    flow = _settle(fixed, _reduced(fixed, multipliers))
    objective = float(np.vdot(flow, np.where(flow > 0, fixed.costs, 0.0)))
    return WholePlan(
        flow=flow,
        objective=objective,
        dual_bound=min(bound, objective),
        instances=instances if program.hosting is not None else None,
        multipliers={row.label: -m for row, m in zip(program.rows, multipliers, strict=True)},
    )


def _only_possible(program: ClassProgram) -> ClassProgram:
    if not np.isfinite(program.costs).any(axis=0).all():
        queries = int(program.counts[~np.isfinite(program.costs).any(axis=0)].sum())
        raise InfeasibleError(f"{program.forbids} leaves {queries} queries no model at all. Relax it.")
    return program


def _signed(program: ClassProgram, multipliers: Floats) -> Floats:
    """Multipliers of the sign that weak duality needs: a solver's tolerance may have crossed 0."""
    at_least = np.array([row.lower is not None for row in program.rows], bool)
    return np.where(at_least, np.maximum(multipliers, 0), np.minimum(multipliers, 0))


def _reduced(program: ClassProgram, multipliers: Floats) -> Floats:
    """Costs with what every row charges for them; (J, C)."""
    reduced = program.costs.copy()
    for row, multiplier in zip(program.rows, _signed(program, multipliers), strict=True):
        if multiplier:
            for j, weights in zip(row.options, row.weights, strict=True):
                reduced[j] -= multiplier * weights
    return reduced


def _bound(program: ClassProgram, multipliers: Floats) -> float:
    """The dual value over all classes: no whole assignment costs less, whatever the multipliers."""
    signed = _signed(program, multipliers)
    bound = float(_reduced(program, multipliers).min(axis=0) @ program.counts)
    gpus_each = program.hosting.gpus_each if program.hosting is not None else ()
    worth_a_gpu = np.zeros(max(1, len(gpus_each)))
    for row, multiplier in zip(program.rows, signed, strict=True):
        if row.instance_of is not None:
            worth = -multiplier * (row.upper or 0.0) / gpus_each[row.instance_of]
            worth_a_gpu[row.instance_of] += worth
        else:
            limit = row.lower if row.lower is not None else row.upper
            bound += multiplier * (limit or 0.0)
    # The budget at best goes wholly to the model that makes the most of a GPU.
    return bound - float(worth_a_gpu.max()) * (program.hosting.budget if program.hosting is not None else 0)


def _with_instances(program: ClassProgram, instances: Ints) -> ClassProgram:
    rows = tuple(
        row
        if row.instance_of is None
        else replace(row, upper=(row.upper or 0.0) * float(instances[row.instance_of]), instance_of=None)
        for row in program.rows
    )
    return replace(program, rows=rows, hosting=None)


def _settle(program: ClassProgram, reduced: Floats) -> Ints:
    """All classes where they are cheapest, the near ties by an integer program that keeps the rows."""
    options, classes = program.costs.shape
    home = reduced.argmin(axis=0)
    two = np.partition(reduced, min(1, options - 1), axis=0)
    margin = two[min(1, options - 1)] - two[0] if options > 1 else np.zeros(classes)
    flow = np.zeros(program.costs.shape, np.int64)
    flow[home, np.arange(classes)] = program.counts
    size = _NEAR_TIES
    order = np.argsort(margin, kind="stable")
    while True:
        near = np.sort(order[:size])
        part = whole(_rest_of(program, flow, near))
        if part is not None:
            flow[:, near] = part
            return flow
        if size >= min(classes, _MOST_NEAR_TIES):
            raise InfeasibleError(
                "the constraints can only be met with queries split between models: "
                f"{', '.join(row.label for row in program.rows)}. Relax one a little."
            )
        size *= _GROWTH


def _rest_of(program: ClassProgram, flow: Ints, near: NDArray[np.intp]) -> ClassProgram:
    """The program of some classes, with what the others leave of every row."""
    others = flow.copy()
    others[:, near] = 0
    rows = []
    for row in program.rows:
        used = float(np.vdot(row.weights, others[list(row.options)]))
        rows.append(
            replace(
                row,
                weights=row.weights[:, near],
                lower=None if row.lower is None else row.lower - used,
                upper=None if row.upper is None else row.upper - used,
            )
        )
    return replace(
        program, costs=program.costs[:, near], counts=program.counts[near], rows=tuple(rows), free_costs=None
    )


def _conflict(program: ClassProgram) -> str:
    """A smallest set of constraints that cannot hold together, each of them needed for the conflict."""

    def feasible(labels: frozenset[str], variables: int | None = None) -> bool:
        free = program.free_costs is not None and program.forbids not in labels
        kept = replace(
            program,
            costs=program.free_costs if free and program.free_costs is not None else program.costs,
            rows=tuple(
                row
                for row in program.rows
                if row.label in labels
                and (row.instance_of is None or program.hosting is None or program.hosting.label in labels)
            ),
            hosting=program.hosting if program.hosting and program.hosting.label in labels else None,
        )
        return relax(kept, variables) is not None

    labels = [row.label for row in program.rows]
    labels += [program.hosting.label] if program.hosting else []
    labels += [program.forbids] if program.free_costs is not None else []
    # Sought on wide bins, proved on narrow ones: those may find a way where wide ones have none.
    found = smallest_conflict(labels, lambda kept: feasible(kept, _FEW_VARIABLES))
    if feasible(frozenset(found)):
        found = smallest_conflict(labels, feasible)
    return conflict_message(found)
