"""A request for a plan, from its options to the plan document: what the command line asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmenergy.analysis.energy_model import load_fits
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing import windows as timed
from pytest_llmenergy.routing.baselines import baselines
from pytest_llmenergy.routing.frontier import at_accuracy, at_energy, between, plan_at, sweep
from pytest_llmenergy.routing.held_out import hold_out
from pytest_llmenergy.routing.hosts import choose_hosts
from pytest_llmenergy.routing.lengths import blind_problem, in_hindsight, learn_lengths
from pytest_llmenergy.routing.operators import Limits, check_limits, explain_infeasible, gpus_of, plan_within
from pytest_llmenergy.routing.plan import plan_document, totals_entry
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.reference import reference_plan
from pytest_llmenergy.routing.solve import InfeasibleError
from pytest_llmenergy.routing.workload import has_lengths, read_workload, write_assignment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_llmenergy.routing.frontier import Point
    from pytest_llmenergy.routing.hosts import Host
    from pytest_llmenergy.routing.problem import Ints, Problem
    from pytest_llmenergy.routing.workload import Workload


def plan_of(given: dict[str, Any], *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The plan document of a request, by the options' names; the plan of each query is written where asked.

    Args:
        given: the options' values.
        tell: is told what is being done.

    Raises:
        RequestError: the request or the input is wrong, or the constraints cannot hold together.
    """
    _check(given)
    hosts = choose_hosts(
        load_fits(given["fits"]),
        metric=given["metric"],
        only=[name.strip() for name in (given["models"] or "").split(",") if name.strip()],
        accuracies=given["accuracy"],
        allow_unusable=given["allow_unusable"],
    )
    limits = Limits(
        tokens=given["capacity_tokens"],
        gpu_s=given["capacity_gpu_s"],
        gpus_each={name: int(n) for name, n in given["gpus"].items()},
        gpu_budget=given["gpu_budget"],
        horizon_s=given["horizon"],
    )
    check_limits(limits, hosts)
    if given["windows"] is not None:
        problem, points, more = _in_windows(hosts, limits, given, tell)
    elif limits.any:
        problem, points, more = _within_limits(hosts, limits, given, tell)
    else:
        problem, points, more = _by_shares(hosts, given, tell)
    found = more.pop("baselines", ())
    if given["held_out"]:
        tell("Routing the half held out")
        more["held_out"] = _held_out(problem, points, given["seed"])
    if given["output"] is not None and given["windows"] is None:
        tell(f"Writing {given['output']}")
        write_assignment(given["output"], problem.workload, points[0].solution.flow, problem.models)
    return plan_document(problem, points, found, confidence=given["confidence"], **more)


def _spell(names: list[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def _check(given: dict[str, Any]) -> None:
    """Refuse options that do not go together."""

    def among(*names: str) -> list[str]:
        return [name for name in names if given[name] not in (None, {})]

    demands = among("accuracy_at_least", "energy_at_most")
    operators = among("capacity_tokens", "capacity_gpu_s", "gpu_budget", "windows")
    several = len(given["zeta"] or [0.5]) > 1
    asked = _spell(demands or operators)
    by_pulp = given["solver"] != "prices"
    blind = given["lengths_from"] is not None
    refused = (
        (
            len(demands) > 1 or (demands and given["zeta"] is not None),
            "--zeta, --accuracy-at-least and --energy-at-most each choose the plan. Give one.",
        ),
        (demands and operators, f"{asked} cannot be combined with {_spell(operators)}. Give --zeta."),
        (given["output"] and several, "-o writes one plan. Give one --zeta, or --accuracy-at-least."),
        (operators and by_pulp, f"{asked} is always solved by PuLP on classes. Leave --solver out."),
        (demands and by_pulp, f"{asked} is met by --solver prices alone. Leave --solver out."),
        (
            operators and given["held_out"],
            f"--held-out follows prices, which a plan under {asked} has none of. Leave it out.",
        ),
        (given["lp"] and not by_pulp, "--lp saves the program of PuLP. Add --solver pulp."),
        (given["lp"] and several, "--lp saves one program. Give one --zeta."),
        (
            blind and (operators or given["latency_at_most"] is not None),
            "--lengths-from goes with shares alone. Leave limits and windows out.",
        ),
        (blind and given["held_out"], "--held-out needs known lengths. Leave --lengths-from out."),
        (
            not 0 < given["confidence"] < 1,
            f"--confidence {given['confidence']:g} is not between 0 and 1. Try 0.95.",
        ),
    )
    for is_so, message in refused:
        if is_so:
            raise RequestError(message)


def _bounds(hosts: tuple[Host, ...], queries: int, given: dict[str, Any]) -> tuple[Ints, Ints]:
    return share_bounds(
        [host.name for host in hosts],
        queries,
        exact=given["share"],
        least=given["min_share"],
        most=given["max_share"],
        # A model that is not hosted gets no query.
        some_each=given["gpu_budget"] is None,
    )


def _problem(hosts: tuple[Host, ...], workload: Workload, given: dict[str, Any]) -> Problem:
    bounds = _bounds(hosts, workload.queries, given)
    return make_problem(hosts, workload, bounds, latency_s=given["latency_at_most"])


def _each(zetas: Sequence[float], tell: Callable[[str], None]) -> Iterator[float]:
    """The zetas, told one by one."""
    for i, zeta in enumerate(zetas):
        tell(f"Planning for zeta {zeta:g} ({i + 1} of {len(zetas)})")
        yield zeta


def _by_shares(
    hosts: tuple[Host, ...], given: dict[str, Any], tell: Callable[[str], None]
) -> tuple[Problem, list[Point], dict[str, Any]]:
    tell(f"Reading {given['workload']}")
    more: dict[str, Any] = {}
    known = None
    if given["lengths_from"] is not None:
        workload = read_workload(given["workload"], lengths_known=False)
        lengths = learn_lengths(read_workload(given["lengths_from"]))
        problem = blind_problem(hosts, workload, _bounds(hosts, workload.queries, given), lengths)
        more["lengths_from"] = str(given["lengths_from"])
        known = _known_lengths(hosts, given)
    else:
        problem = _problem(hosts, read_workload(given["workload"]), given)
    try:
        points = _points(problem, given, tell)
    except InfeasibleError as error:
        raise InfeasibleError(explain_infeasible(problem)) from error
    if known is not None:
        more["hindsight"] = _hindsight(problem, known, points)
    if len(points) > 1 and given["solver"] == "prices":
        more["between_points"] = between(problem, points)
    if not given["no_baselines"] and problem.allowed is None:
        tell("Comparing with the baselines")
        more["baselines"] = baselines(problem, seed=given["seed"], known=points)
    return problem, points, more


def _known_lengths(hosts: tuple[Host, ...], given: dict[str, Any]) -> Problem | None:
    """The problem with its true lengths, where the workload has them after all; None where it has not."""
    return (
        _problem(hosts, read_workload(given["workload"]), given) if has_lengths(given["workload"]) else None
    )


def _hindsight(blind: Problem, known: Problem, points: list[Point]) -> list[dict[str, Any]]:
    """What the blind plans came to with the true lengths, beside the plans that know them."""
    found = []
    for point in points:
        came_to = known.totals(in_hindsight(blind, point.solution.flow, known))
        best = plan_at(known, point.zeta)
        found.append(
            {
                "zeta": float(point.zeta),
                "energy_j": came_to.energy_j,
                "accuracy": came_to.accuracy,
                "objective": known.objective(came_to, point.zeta),
                "knowing_energy_j": best.totals.energy_j,
                "knowing_accuracy": best.totals.accuracy,
                "knowing_objective": best.solution.objective,
            }
        )
    return found


def _points(problem: Problem, given: dict[str, Any], tell: Callable[[str], None]) -> list[Point]:
    tell("Planning")
    if given["accuracy_at_least"] is not None:
        return [at_accuracy(problem, given["accuracy_at_least"])]
    if given["energy_at_most"] is not None:
        return [at_energy(problem, given["energy_at_most"])]
    zetas = given["zeta"] or [0.5]
    if given["solver"] == "prices":
        return sweep(problem, _each(zetas, tell))
    solver = given["solver"].removeprefix("pulp").removeprefix("-") or None
    return [reference_plan(problem, zeta, solver=solver, lp=given["lp"]) for zeta in _each(zetas, tell)]


def _within_limits(
    hosts: tuple[Host, ...], limits: Limits, given: dict[str, Any], tell: Callable[[str], None]
) -> tuple[Problem, list[Point], dict[str, Any]]:
    tell(f"Reading {given['workload']}")
    problem = _problem(hosts, read_workload(given["workload"]), given)
    found = [plan_within(problem, zeta, limits) for zeta in _each(given["zeta"] or [0.5], tell)]
    more: dict[str, Any] = {
        "limits": [
            {label: worth for label, worth in whole.multipliers.items() if worth} for _, whole in found
        ]
    }
    if limits.gpu_budget is not None:
        more["gpu_budget"] = limits.gpu_budget
        more["hosting"] = [
            {
                host.name: {"instances": int(n), "gpus": int(n) * (gpus_of(host, limits) or 1)}
                for host, n in zip(hosts, whole.instances if whole.instances is not None else (), strict=True)
            }
            for _, whole in found
        ]
    return problem, [point for point, _ in found], more


def _in_windows(
    hosts: tuple[Host, ...], limits: Limits, given: dict[str, Any], tell: Callable[[str], None]
) -> tuple[Problem, list[Point], dict[str, Any]]:
    tell(f"Reading {given['workload']}")
    windows = timed.read_windows(given["windows"])
    workload = timed.read_timed_workload(given["workload"], windows)
    problem = _problem(hosts, workload.workload, given)
    zetas = given["zeta"] or [0.5]
    plans = [timed.plan_in_windows(problem, workload, windows, zeta, limits) for zeta in _each(zetas, tell)]
    if given["output"] is not None:
        timed.write_timed_assignment(given["output"], workload, plans[0], problem.models)
    more = {
        "windows": {
            "start_s": windows.start_s.tolist(),
            "end_s": windows.end_s.tolist(),
            windows.rate_name: windows.rate.tolist(),
        },
        "window_plans": [
            {
                "zeta": zeta,
                windows.cost_name: plan.cost,
                f"{windows.cost_name}_without_waiting": plan.cost_at_once,
                "counts": {name: plan.flow[k].sum(axis=1).tolist() for k, name in enumerate(problem.models)},
            }
            for zeta, plan in zip(zetas, plans, strict=True)
        ],
    }
    return problem, [plan.point for plan in plans], more


def _held_out(problem: Problem, points: list[Point], seed: int) -> list[dict[str, Any]]:
    found = [hold_out(problem, point.zeta, seed=seed) for point in points]
    return [
        {
            "zeta": result.zeta,
            "queries": result.queries,
            "routed": totals_entry(problem, result.routed),
            "optimum": totals_entry(problem, result.optimum),
            "energy_change": result.energy_change,
            "accuracy_change": result.accuracy_change,
        }
        for result in found
    ]
