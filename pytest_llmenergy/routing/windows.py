"""Electricity price or carbon intensity over time: which model serves a query, and when.

A query may wait from its arrival to its deadline, the latest moment it may start. Without capacities each
pair of query and model takes its cheapest window and a transportation problem is left; with capacities in
each window the program on classes decides (routing/program.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy.errors import DocumentError, RequestError, require
from pytest_llmenergy.routing.frontier import Point
from pytest_llmenergy.routing.operators import latency_label, limit_rows, share_rows
from pytest_llmenergy.routing.problem import check_zeta
from pytest_llmenergy.routing.program import solve_program
from pytest_llmenergy.routing.rows import ClassProgram, Row
from pytest_llmenergy.routing.solve import InfeasibleError, Solution, solve
from pytest_llmenergy.routing.workload import Workload, read_workload
from pytest_llmenergy.units import kilowatt_hours_from_joules

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.operators import Limits
    from pytest_llmenergy.routing.problem import Problem

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RATES = {"price_per_kwh": "cost", "carbon_g_per_kwh": "carbon_g"}
_EXAMPLE = "Give the columns start_s,end_s and price_per_kwh or carbon_g_per_kwh."


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of time in order, and what a kWh costs in each (money, or g of CO2); all (W,)."""

    start_s: Floats
    end_s: Floats
    rate: Floats
    rate_name: str  # a key of RATES

    @property
    def cost_name(self) -> str:
        """What rate times energy is called."""
        return RATES[self.rate_name]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedWorkload:
    """Classes of queries that are equal in tokens and in the windows they may be served in."""

    workload: Workload
    first: Ints  # (C,): window
    last: Ints  # (C,): window
    row_class: Ints  # (rows,): the class of each row of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """A plan over models and windows."""

    point: Point
    flow: Ints  # (K, W, C)
    cost: float  # rate times energy over the workload
    cost_at_once: float | None  # the same with every query served in its first window; None: it does not fit


def read_windows(path: Path) -> Windows:
    """Read windows from CSV.

    Raises:
        DocumentError: it is missing, lacks a column, holds what is no number, or windows overlap.
    """
    polars = require("polars", feature="reading time windows", extra="routing")
    if not path.is_file():
        raise DocumentError(path, "there is no such file.", _EXAMPLE)
    try:
        frame = polars.read_csv(path, schema_overrides=dict.fromkeys(_names(polars, path), polars.Float64))
    except polars.exceptions.PolarsError as error:
        raise DocumentError(path, f"cannot be read: {str(error).splitlines()[0]}.", _EXAMPLE) from error
    rates = [name for name in RATES if name in frame.columns]
    for name in ("start_s", "end_s"):
        if name not in frame.columns:
            raise DocumentError(path, f"has no column {name!r}.", _EXAMPLE)
    if len(rates) != 1:
        raise DocumentError(path, "has no rate, or two.", _EXAMPLE)
    start_s, end_s, rate = (frame[name].to_numpy() for name in ("start_s", "end_s", rates[0]))
    if not len(start_s) or not all(np.isfinite(values).all() for values in (start_s, end_s, rate)):
        raise DocumentError(path, "has no windows, or an empty cell.", "Fill it in.")
    order = np.argsort(start_s)
    start_s, end_s, rate = start_s[order], end_s[order], rate[order]
    if (end_s <= start_s).any() or (start_s[1:] < end_s[:-1]).any():
        raise DocumentError(path, "has windows that overlap or end before they start.", "Put them in a row.")
    return Windows(start_s=start_s, end_s=end_s, rate=rate, rate_name=rates[0])


def _names(polars: Any, path: Path) -> list[str]:
    names: list[str] = polars.scan_csv(path).collect_schema().names()
    return [name for name in names if name in ("start_s", "end_s", *RATES)]


def read_timed_workload(path: Path, windows: Windows) -> TimedWorkload:
    """Read a workload with the optional columns arrival_s and deadline_s.

    Without an arrival a query is there from the start, without a deadline it may wait to the end.

    Raises:
        DocumentError: it cannot be read, or a query fits no window.
    """
    polars = require("polars", feature="reading a workload", extra="routing")
    read_workload(path)  # refuses what is no workload, with the row
    is_parquet = path.suffix.lower() == ".parquet"
    frame = polars.read_parquet(path) if is_parquet else polars.read_csv(path, infer_schema_length=None)
    rows = len(frame)

    def seconds(name: str, missing: float) -> Floats:
        if name not in frame.columns:
            return np.full(rows, missing)
        try:
            values: Floats = frame[name].cast(polars.Float64).to_numpy()
        except polars.exceptions.PolarsError as error:
            raise DocumentError(path, f"{name} is not a number throughout.", "Give seconds.") from error
        if np.isnan(values).any():
            row = int(np.flatnonzero(np.isnan(values))[0]) + 1
            raise DocumentError(path, f"query {row}: {name} is empty.", "Give seconds.")
        return values

    # The first window that ends after the arrival, the last that starts before the deadline.
    first = np.searchsorted(windows.end_s, seconds("arrival_s", -np.inf), "right")
    last = np.searchsorted(windows.start_s, seconds("deadline_s", np.inf), "right") - 1
    if (last < first).any():
        row = int(np.flatnonzero(last < first)[0]) + 1
        raise DocumentError(path, f"query {row} can be served in no window.", "Give windows for its time.")
    times = frame["count"].to_numpy() if "count" in frame.columns else np.ones(rows, np.int64)
    columns = (first, last, frame["tokens_in"].to_numpy(), frame["tokens_out"].to_numpy())
    keys, where = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return TimedWorkload(
        workload=Workload(
            tokens_in=keys[:, 2].astype(np.int64),
            tokens_out=keys[:, 3].astype(np.int64),
            counts=np.bincount(where.ravel(), times).astype(np.int64),
        ),
        first=keys[:, 0].astype(np.int64),
        last=keys[:, 1].astype(np.int64),
        row_class=np.repeat(where.ravel(), times),
    )


def plan_in_windows(
    problem: Problem, timed: TimedWorkload, windows: Windows, zeta: float, limits: Limits
) -> WindowPlan:
    """The plan that minimises zeta times normalised cost less (1 - zeta) times normalised accuracy.

    Capacities hold in each window, shares over all of them.

    Raises:
        InfeasibleError: the constraints cannot hold together.
    """
    check_zeta(zeta)
    if limits.gpu_budget is not None:
        raise RequestError("--gpu-budget and --windows cannot be combined. Give capacities in each window.")
    start_s = time.perf_counter()
    costs = _costs(problem, timed, windows, zeta)
    flow, objective, bound = _solve(problem, timed, costs, limits)
    solve_s = time.perf_counter() - start_s
    solution = Solution(
        flow=flow.sum(axis=1),
        prices=np.full(len(flow), np.nan),
        objective=objective,
        dual_bound=bound,
        status="optimal" if objective == bound else "within-gap",
    )
    at_once = replace(timed, last=timed.first)
    try:
        first_flow, _, _ = _solve(problem, at_once, _costs(problem, at_once, windows, zeta), limits)
        cost_at_once = _cost(problem, windows, first_flow)
    except InfeasibleError:
        cost_at_once = None
    return WindowPlan(
        point=Point(zeta=zeta, solution=solution, totals=problem.totals(solution.flow), solve_s=solve_s),
        flow=flow,
        cost=_cost(problem, windows, flow),
        cost_at_once=cost_at_once,
    )


def _costs(problem: Problem, timed: TimedWorkload, windows: Windows, zeta: float) -> Floats:
    """Equation 2 with the cost of energy for energy; (K, W, C), infinite outside a query's windows."""
    rates = windows.rate[None, :, None]
    scale = problem.energy_scale_j * (float(np.abs(windows.rate).max()) or 1.0)
    costs = zeta / scale * problem.energy_j[:, None, :] * rates
    costs = costs - (1 - zeta) * problem.accuracy_values()[:, None, :]
    number = np.arange(len(windows.rate))[:, None]
    open_to = (timed.first <= number) & (number <= timed.last)
    if problem.allowed is not None:
        return np.where(open_to[None] & problem.allowed[:, None, :], costs, np.inf)
    return np.where(open_to[None], costs, np.inf)


def _solve(
    problem: Problem, timed: TimedWorkload, costs: Floats, limits: Limits
) -> tuple[Ints, float, float]:
    models, slots, classes = costs.shape
    counts = timed.workload.counts
    if not limits.any:
        solution = solve(costs.min(axis=1), counts, problem.lower, problem.upper)
        flow = np.zeros(costs.shape, np.int64)
        when = costs.argmin(axis=1)
        flow[np.arange(models)[:, None], when, np.arange(classes)] = solution.flow
        return flow, solution.objective, solution.dual_bound
    rows = [
        replace(row, options=_slots(row, slots), weights=np.repeat(row.weights, slots, axis=0))
        for row in share_rows(problem, counts)
    ]
    rows += [
        replace(row, options=(row.options[0] * slots + w,), label=f"{row.label} in window {w}")
        for row in limit_rows(problem, limits)
        for w in range(slots)
    ]
    flat = costs.reshape(models * slots, classes)
    whole = solve_program(
        ClassProgram(
            costs=flat,
            counts=counts,
            rows=tuple(rows),
            free_costs=np.where(np.isfinite(flat), flat, 0.0),
            forbids=f"arrivals, deadlines and {latency_label(problem)}"
            if problem.allowed is not None
            else "arrivals and deadlines",
        )
    )
    return whole.flow.reshape(costs.shape), whole.objective, whole.dual_bound


def _slots(row: Row, slots: int) -> tuple[int, ...]:
    return tuple(range(row.options[0] * slots, (row.options[0] + 1) * slots))


def _cost(problem: Problem, windows: Windows, flow: Ints) -> float:
    energy_j = np.einsum("kwc,kc->w", flow, problem.energy_j)
    return float(sum(kilowatt_hours_from_joules(e) * r for e, r in zip(energy_j, windows.rate, strict=True)))


def write_timed_assignment(
    path: Path, timed: TimedWorkload, plan: WindowPlan, models: tuple[str, ...]
) -> None:
    """Write one row a query, tokens_in,tokens_out,model,window (from 0), in the order of the workload."""
    polars = require("polars", feature="writing a plan", extra="routing")
    from pytest_llmenergy.campaign.results import write_atomically

    _, slots, classes = plan.flow.shape
    upto = np.cumsum(plan.flow.reshape(-1, classes), axis=0)
    order = np.argsort(timed.row_class, kind="stable")
    grouped = timed.row_class[order]
    place = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    option = np.empty(len(order), np.int64)
    option[order] = (upto[:, grouped] <= place).sum(axis=0)
    frame = polars.DataFrame(
        {
            "tokens_in": timed.workload.tokens_in[timed.row_class],
            "tokens_out": timed.workload.tokens_out[timed.row_class],
            "model": polars.Series(list(models)).gather(option // slots),
            "window": option % slots,
        }
    )
    import io

    buffer = io.BytesIO()
    if path.suffix.lower() == ".parquet":
        frame.write_parquet(buffer)
    else:
        frame.write_csv(buffer)
    write_atomically(path, buffer.getvalue())
