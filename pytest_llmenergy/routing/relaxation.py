"""A program on classes as PuLP sees it: relaxed, for the rows' multipliers, and whole, for a few classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing import pulp_solver

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.routing.rows import ClassProgram

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

MOST_VARIABLES = (
    60_000  # of the relaxation: PuLP needs some 20 us each to build; more classes share variables
)
_HOSTING_GAP = 1e-6  # at which the search for instances may stop,
_GAP = 1e-9  # at which the integer programs may stop
_WHOLE_S = 60.0  # and when they have to


def relax(program: ClassProgram, variables: int | None = None) -> tuple[Floats, Ints] | None:
    """The rows' multipliers at the relaxation's optimum, and the instances; None where none is feasible.

    Raises:
        RequestError: the solver gave up.
    """
    program = in_bins(program, variables or MOST_VARIABLES)
    instances = np.zeros(0, np.int64)
    if program.hosting is not None:
        # Whole instances first: then their capacities are known, and the rest is linear again.
        model, hosted, _ = _build(program, whole=False)
        solver = pulp_solver.open_solver("highs", "cbc", time_limit_s=_WHOLE_S, gap_rel=_HOSTING_GAP)
        if not _is_feasible(pulp_solver.solve(model, solver)):
            return None
        instances = np.array([round(h.varValue) for h in hosted], np.int64)
    model, _, _ = _build(program, whole=False, whole_instances=False)
    if not _is_feasible(pulp_solver.solve(model, pulp_solver.open_solver("highs", "cbc"))):
        return None
    return pulp_solver.multipliers(model, [f"row_{r}" for r in range(len(program.rows))]), instances


def _is_feasible(ended: str) -> bool:
    if ended in ("optimal", "feasible"):
        return True
    if ended == "infeasible":
        return False
    raise RequestError(
        f"PuLP ended {ended}, with no plan under these constraints. Relax one, or leave one out."
    )


def _build(
    program: ClassProgram, *, whole: bool, whole_instances: bool = True
) -> tuple[Any, list[Any], dict[tuple[int, int], Any]]:
    """The PuLP problem, its instances, and the variables of option and class."""
    pulp = pulp_solver.pulp()
    model = pulp.LpProblem("classes", pulp.LpMinimize)
    category = pulp.LpInteger if whole else pulp.LpContinuous
    pairs = [(int(j), int(c)) for j, c in np.argwhere(np.isfinite(program.costs))]
    x = {
        (j, c): model.add_variable(f"x_{j}_{c}", lowBound=0, upBound=int(program.counts[c]), cat=category)
        for j, c in pairs
    }
    hosted: list[Any] = []
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
    for r, row in enumerate(program.rows):
        terms = [
            float(weights[c]) * x[j, c]
            for j, weights in zip(row.options, row.weights, strict=True)
            for c in np.flatnonzero(weights).tolist()
            if (j, c) in x
        ]
        left = pulp.lpSum(terms)
        if row.instance_of is not None and hosted:
            model += left - (row.upper or 0.0) * hosted[row.instance_of] <= 0, f"row_{r}"
        elif row.lower is not None:
            model += left >= row.lower, f"row_{r}"
        else:
            model += left <= row.upper, f"row_{r}"
    return model, hosted, x


def whole(program: ClassProgram) -> Ints | None:
    """A whole assignment of a few classes; None where there is none, or none was found in time."""
    model, _, x = _build(program, whole=True)
    solver = pulp_solver.open_solver("highs", "cbc", time_limit_s=_WHOLE_S, gap_rel=_GAP)
    if pulp_solver.solve(model, solver) not in ("optimal", "feasible"):
        return None
    flow = np.zeros(program.costs.shape, np.int64)
    for pair, variable in x.items():
        flow[pair] = round(variable.varValue)
    return flow if (flow.sum(axis=0) == program.counts).all() else None


def in_bins(program: ClassProgram, variables: int) -> ClassProgram:
    """The same program with neighbouring classes merged until PuLP can hold it: their means, their counts."""
    options, classes = program.costs.shape
    bins = max(1, variables // options)
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
