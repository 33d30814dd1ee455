"""Routing under constraints that weigh queries differently: a linear program on classes by PuLP, made whole.

A capacity in tokens or GPU-seconds, or instances that have to fit a GPU budget, take the transportation
structure away: the relaxation leaves a few classes in parts. Its multipliers price every option of every
class, which gives a lower bound for the whole workload (weak duality), settles all classes but the near
ties, and leaves these to a small integer program. What is reported is its objective, the bound, and the gap
that remains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy.routing import pulp_solver
from pytest_llmenergy.routing.conflicts import conflict_message, smallest_conflict
from pytest_llmenergy.routing.solve import InfeasibleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_MOST_VARIABLES = (
    60_000  # of the relaxation: PuLP needs some 20 us each to build; more classes share variables
)
_NEAR_TIES = 64  # classes of the first integer program
_GROWTH = 4
_MOST_NEAR_TIES = 4_096
_GAP = 1e-9  # at which the integer programs may stop
_WHOLE_S = 60.0  # and when they have to


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """lower <= sum of weights times queries <= upper, over some options; a label for people."""

    label: str
    options: tuple[int, ...]
    weights: Floats  # (len(options), C)
    lower: float | None = None
    upper: float | None = None
    instance_of: int | None = None  # then upper is that of one instance of this model


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """How many instances of each model there may be: gpus_each[k] GPUs an instance, budget GPUs in all."""

    gpus_each: tuple[int, ...]
    budget: int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassProgram:
    """Classes of queries to options (models, or models in time windows), under rows."""

    costs: Floats  # (J, C); infinite where an option is not allowed
    counts: Ints  # (C,)
    rows: tuple[Row, ...]
    hosting: Hosting | None = None
    # Costs as they are without what forbids options, and what that is called; for telling why nothing fits.
    free_costs: Floats | None = None
    forbids: str = ""


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
    relaxed = _relax(_in_bins(program))
    if relaxed is None:
        raise InfeasibleError(_conflict(program))
    multipliers, instances = relaxed
    if program.hosting is not None:
        # Instances, once decided, are capacities like any other; the bound stays that of any instances.
        fixed = _with_instances(program, instances)
        tighter = _relax(_in_bins(fixed))
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


def _in_bins(program: ClassProgram) -> ClassProgram:
    """The same program with neighbouring classes merged until PuLP can hold it: their means, their counts."""
    options, classes = program.costs.shape
    bins = max(1, _MOST_VARIABLES // options)
    if classes <= bins:
        return program
    # Bins of like classes: those with the same options allowed, in the order of the workload.
    pattern = np.isfinite(program.costs)
    order = np.lexsort((np.arange(classes), *pattern))
    changes = np.any(np.diff(pattern[:, order], axis=1), axis=0)
    starts = np.union1d(np.flatnonzero(changes) + 1, np.arange(0, classes, -(-classes // bins)))
    counts = np.add.reduceat(program.counts[order], starts)

    def mean(values: Floats) -> Floats:
        return np.add.reduceat((values * program.counts)[:, order], starts, axis=1) / counts

    return replace(
        program,
        costs=mean(np.where(pattern, program.costs, np.inf)),
        counts=counts,
        rows=tuple(replace(row, weights=mean(row.weights)) for row in program.rows),
    )


def _relax(program: ClassProgram) -> tuple[Floats, Ints] | None:
    """The rows' multipliers at the relaxation's optimum, and the instances; None where none is feasible."""
    model, rows, hosted, _ = _build(program, whole=False)
    instances = np.zeros(0, np.int64)
    if hosted is not None:
        # Whole instances first: then their capacities are known, and the rest is linear again.
        status = pulp_solver.solve(
            model, pulp_solver.open_solver("highs", "cbc", time_limit_s=_WHOLE_S, gap_rel=1e-6)
        )
        if status != "optimal":
            return None
        instances = np.array([round(h.varValue) for h in hosted], np.int64)
        loose, rows, _, _ = _build(program, whole=False, whole_instances=False)
        model = loose
    status = pulp_solver.solve(model, pulp_solver.open_solver("highs", "cbc"))
    if status != "optimal":
        return None
    return np.array([row.pi or 0.0 for row in rows]), instances


def _build(
    program: ClassProgram, *, whole: bool, whole_instances: bool = True
) -> tuple[Any, list[Any], list[Any] | None, dict[tuple[int, int], Any]]:
    """The PuLP problem, its rows, its instances, and the variables of option and class."""
    pulp = pulp_solver.pulp()
    model = pulp.LpProblem("classes", pulp.LpMinimize)
    category = pulp.LpInteger if whole else pulp.LpContinuous
    pairs = [(int(j), int(c)) for j, c in np.argwhere(np.isfinite(program.costs))]
    x = {
        (j, c): model.add_variable(f"x_{j}_{c}", lowBound=0, upBound=int(program.counts[c]), cat=category)
        for j, c in pairs
    }
    hosted: list[Any] | None = None
    if program.hosting is not None:
        kind = pulp.LpInteger if whole_instances else pulp.LpContinuous
        hosted = [
            model.add_variable(f"instances_{k}", lowBound=0, cat=kind)
            for k in range(len(program.hosting.gpus_each))
        ]
        gpus = zip(program.hosting.gpus_each, hosted, strict=True)
        model += pulp.lpSum(n * h for n, h in gpus) <= program.hosting.budget, "budget"
    model += pulp.lpSum(float(program.costs[pair]) * x[pair] for pair in pairs), "objective"
    for c, count in enumerate(program.counts.tolist()):
        here = [x[j, c] for j in range(len(program.costs)) if (j, c) in x]
        model += pulp.lpSum(here) == count, f"class_{c}"
    rows = []
    for r, row in enumerate(program.rows):
        terms = [
            float(weights[c]) * x[j, c]
            for j, weights in zip(row.options, row.weights, strict=True)
            for c in np.flatnonzero(weights).tolist()
            if (j, c) in x
        ]
        left = pulp.lpSum(terms)
        if row.instance_of is not None and hosted is not None:
            left = left - (row.upper or 0.0) * hosted[row.instance_of]
            constraint = left <= 0
        elif row.lower is not None:
            constraint = left >= row.lower
        else:
            constraint = left <= row.upper
        model += constraint, f"row_{r}"
        rows.append(constraint)
    return model, rows, hosted, x


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
        part = _whole(_rest_of(program, flow, near))
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


def _whole(program: ClassProgram) -> Ints | None:
    model, _, _, x = _build(program, whole=True)
    solver = pulp_solver.open_solver("highs", "cbc", time_limit_s=_WHOLE_S, gap_rel=_GAP)
    if pulp_solver.solve(model, solver) != "optimal":
        return None
    flow = np.zeros(program.costs.shape, np.int64)
    for pair, variable in x.items():
        flow[pair] = round(variable.varValue)
    return flow if (flow.sum(axis=0) == program.counts).all() else None


def _conflict(program: ClassProgram) -> str:
    """A smallest set of constraints that cannot hold together, each of them needed for the conflict."""

    def feasible(labels: frozenset[str]) -> bool:
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
        return _relax(_in_bins(kept)) is not None

    labels = [row.label for row in program.rows]
    labels += [program.hosting.label] if program.hosting else []
    labels += [program.forbids] if program.free_costs is not None else []
    return conflict_message(smallest_conflict(labels, feasible))
