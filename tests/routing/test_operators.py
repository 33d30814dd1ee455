"""Capacities, hosting and latency."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.operators import Limits, check_limits, explain_infeasible, plan_within
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.solve import InfeasibleError
from pytest_llmenergy.routing.workload import workload_of

NAMES = ("small", "medium", "large")


@pytest.fixture
def tiny(hosts):
    queries = workload_of([5, 8, 9, 20, 3, 6, 14], [10, 31, 100, 40, 2, 77, 60])
    return make_problem(
        hosts, queries, share_bounds(NAMES, 7, least=dict.fromkeys(NAMES, 0), most=dict.fromkeys(NAMES, 1))
    )


def brute_force(problem, zeta, feasible):
    """The cheapest of all 3^7 assignments that are feasible."""
    costs = problem.costs(zeta)
    best = np.inf
    for choice in itertools.product(range(3), repeat=7):
        chosen = np.array(choice)
        if feasible(chosen):
            best = min(best, costs[chosen, np.arange(7)].sum())
    return best


@pytest.mark.parametrize("zeta", [0.05, 0.2, 0.6])
def test_capacity_in_tokens_is_kept_at_least_cost(tiny, zeta):
    """The whole plan found is the best there is, and its bound is below it."""
    limits = Limits(tokens={"large": 120, "medium": 90})
    tokens = tiny.workload.tokens

    def feasible(chosen):
        return tokens[chosen == 2].sum() <= 120 and tokens[chosen == 1].sum() <= 90

    point, _ = plan_within(tiny, zeta, limits)
    used = point.solution.flow @ tokens
    assert used[2] <= 120
    assert used[1] <= 90
    assert point.solution.objective == pytest.approx(brute_force(tiny, zeta, feasible), abs=1e-9)
    assert point.solution.dual_bound <= point.solution.objective + 1e-12
    assert point.solution.gap < 0.2


def test_capacity_in_gpu_seconds_counts_gpus(tiny):
    """A second of a model on four GPUs is four GPU-seconds."""
    limits = Limits(gpu_s={"large": 4.0})
    gpu_s = 4 * tiny.runtime_s[2]

    def feasible(chosen):
        return gpu_s[chosen == 2].sum() <= 4.0

    point, _ = plan_within(tiny, 0.1, limits)
    assert (point.solution.flow[2] @ gpu_s) <= 4.0 + 1e-9
    assert point.solution.objective == pytest.approx(brute_force(tiny, 0.1, feasible), abs=1e-9)


def test_a_capacity_that_does_not_bind_changes_nothing(problem):
    """The plan is that of the prices, and the gap closes."""
    point, _ = plan_within(problem, 0.3, Limits(tokens={"small": 1e9}))
    assert point.solution.objective == pytest.approx(plan_at(problem, 0.3).solution.objective, rel=1e-9)
    assert point.solution.gap < 1e-7


def test_a_capacity_on_hundreds_of_queries_leaves_a_small_gap(problem):
    """The bound is proved by multipliers on every class."""
    most = 0.2 * float(problem.workload.tokens @ problem.workload.counts)
    point, whole = plan_within(problem, 0.1, Limits(tokens={"large": most, "medium": most}))
    assert (point.solution.flow @ problem.workload.tokens)[1:].max() <= most
    assert 0 <= point.solution.gap < 1e-3
    assert max(whole.multipliers.values()) > 0


def test_bins_give_a_bound_for_all_classes(problem, monkeypatch):
    """Where PuLP is shown bins only, the bound still holds and the capacity is still kept."""
    most = 0.2 * float(problem.workload.tokens @ problem.workload.counts)
    limits = Limits(tokens={"large": most, "medium": most})
    exact, _ = plan_within(problem, 0.1, limits)
    monkeypatch.setattr("pytest_llmenergy.routing.relaxation.MOST_VARIABLES", 90)
    binned, _ = plan_within(problem, 0.1, limits)
    assert binned.solution.dual_bound <= exact.solution.objective
    assert (binned.solution.flow @ problem.workload.tokens)[1:].max() <= most
    assert binned.solution.objective == pytest.approx(exact.solution.objective, rel=1e-2)


def test_hosting_decides_how_many_instances_fit_the_budget(tiny):
    """Against every assignment with every number of instances that the GPUs allow."""
    limits = Limits(gpu_budget=6, horizon_s=1.5)
    check_limits(limits, tiny.hosts)

    def feasible(chosen):
        gpus = 0
        for k, each in enumerate((1, 2, 4)):
            mine = chosen == k
            load_s = tiny.runtime_s[k][mine].sum()
            gpus += each * max(int(np.ceil(load_s / 1.5 - 1e-9)), int(mine.any()))
        return gpus <= 6

    point, whole = plan_within(tiny, 0.05, limits)
    assert whole.instances @ [1, 2, 4] <= 6
    for k in range(3):
        assert point.solution.flow[k] @ tiny.runtime_s[k] <= 1.5 * whole.instances[k] + 1e-9
    assert point.solution.objective == pytest.approx(brute_force(tiny, 0.05, feasible), abs=1e-9)
    assert point.solution.dual_bound <= point.solution.objective


def relaxed(problem, zeta, rows, instances=0, budget=None):
    """The linear relaxation by SciPy: rows over pairs and instances, each at most 0 or its limit."""
    models, classes = problem.energy_j.shape
    each = np.kron(np.ones(models), np.eye(classes)).reshape(classes, -1)
    left = np.array([row for row, _ in rows])
    limits = [limit for _, limit in rows]
    if budget is not None:
        left = np.vstack([left, [0.0] * (models * classes) + [1, 2, 4]])
        limits.append(budget)
    return linprog(
        np.append(problem.costs(zeta).ravel(), np.zeros(instances)),
        A_ub=left,
        b_ub=limits,
        A_eq=np.hstack([each, np.zeros((classes, instances))]),
        b_eq=problem.workload.counts,
    ).fun


def of_model(problem, k, values):
    """A row's weights over all pairs, those of other models 0."""
    row = np.zeros(problem.energy_j.shape)
    row[k] = values
    return row.ravel()


@pytest.mark.parametrize("zeta", [0.05, 0.2])
def test_the_bound_under_capacities_is_the_relaxations(tiny, zeta):
    """Proved by the multipliers alone, and below the best whole plan where queries cannot be split."""
    point, _ = plan_within(tiny, zeta, Limits(tokens={"large": 120, "medium": 90}))
    rows = [(of_model(tiny, 2, tiny.tokens), 120), (of_model(tiny, 1, tiny.tokens), 90)]
    assert point.solution.dual_bound == pytest.approx(relaxed(tiny, zeta, rows), rel=1e-6)
    assert point.solution.gap > 1e-3


def test_the_bound_of_hosting_is_that_of_instances_in_parts(tiny):
    """The GPU budget goes at best to the model that makes the most of a GPU."""
    point, _ = plan_within(tiny, 0.05, Limits(gpu_budget=6, horizon_s=1.5))
    rows = []
    for k in range(3):
        a_model = -np.eye(3)[k]
        rows.append((np.append(of_model(tiny, k, tiny.runtime_s[k]), 1.5 * a_model), 0.0))
        rows.append((np.append(of_model(tiny, k, 1.0), 7.0 * a_model), 0.0))
    expected = relaxed(tiny, 0.05, rows, instances=3, budget=6)
    assert point.solution.dual_bound <= point.solution.objective
    assert point.solution.dual_bound <= expected + 1e-6
    assert point.solution.dual_bound == pytest.approx(expected, rel=0.05)


def test_shares_hold_beside_capacities(hosts, workload):
    """A largest and a least share, where a capacity makes it a program on classes."""
    bounds = share_bounds(NAMES, workload.queries, most={"medium": 0.3}, least={"large": 0.2})
    problem = make_problem(hosts, workload, bounds)
    point, _ = plan_within(problem, 0.3, Limits(tokens={"small": 1e9}))
    assert point.solution.objective == pytest.approx(plan_at(problem, 0.3).solution.objective, rel=1e-9)
    assert point.totals.counts[1] <= 90
    assert point.totals.counts[2] >= 60
    free, _ = plan_within(
        make_problem(hosts, workload, share_bounds(NAMES, workload.queries)),
        0.3,
        Limits(tokens={"small": 1e9}),
    )
    assert free.totals.counts[1] > 90 or free.totals.counts[2] < 60


def test_a_model_that_is_not_hosted_gets_no_query(tiny):
    """Not even one that is predicted to take no time."""
    point, whole = plan_within(tiny, 0.9, Limits(gpu_budget=1, horizon_s=1e6))
    assert whole.instances.tolist() == [1, 0, 0]
    assert point.totals.counts.tolist() == [7, 0, 0]


def test_latency_drops_pairs_and_stays_exact(hosts, workload):
    """No query goes where its call takes longer; the certificate stays exact."""
    problem = make_problem(hosts, workload, share_bounds(NAMES, workload.queries), latency_s=5.0)
    point = plan_at(problem, 0.05)
    assert point.solution.gap == 0
    assert problem.runtime_s[point.solution.flow > 0].max() <= 5.0
    free = make_problem(hosts, workload, share_bounds(NAMES, workload.queries))
    assert free.runtime_s[plan_at(free, 0.05).solution.flow > 0].max() > 5.0


def test_latency_and_shares_that_conflict_are_named(hosts, workload):
    """Those two constraints and no other, with how many queries the model could serve."""
    bounds = share_bounds(NAMES, workload.queries, exact={"small": 0.05, "medium": 0.05, "large": 0.9})
    problem = make_problem(hosts, workload, bounds, latency_s=5.0)
    with pytest.raises(InfeasibleError):
        plan_at(problem, 0.5)
    message = explain_infeasible(problem)
    assert "at least 270 of 300 queries to large" in message
    assert "--latency-at-most" in message
    assert "to small" not in message
    possible = int(workload.counts[problem.allowed[2]].sum())
    assert f"large can serve {possible} of them in time" in message
    least_s = float(message.rpartition("--latency-at-most ")[2].split()[0])
    assert plan_at(make_problem(hosts, workload, bounds, latency_s=least_s), 0.5).solution.gap == 0
    with pytest.raises(InfeasibleError):
        plan_at(make_problem(hosts, workload, bounds, latency_s=least_s * 0.99), 0.5)


def test_a_latency_nobody_can_keep_is_said_so(hosts, workload):
    """With the number of queries it leaves without a model, and the least latency that leaves none."""
    bounds = share_bounds(NAMES, workload.queries)
    with pytest.raises(InfeasibleError, match="300 of 300 queries no model") as caught:
        make_problem(hosts, workload, bounds, latency_s=1e-6)
    least_s = float(str(caught.value).rpartition(" one is ")[2].split()[0])
    make_problem(hosts, workload, bounds, latency_s=least_s)
    with pytest.raises(InfeasibleError, match="1 of 300 queries"):
        make_problem(hosts, workload, bounds, latency_s=least_s * 0.999)


def test_capacities_that_conflict_are_named(tiny):
    """All three capacities are too small together; the shares have nothing to do with it."""
    limits = Limits(tokens={"small": 100, "medium": 100, "large": 100})
    with pytest.raises(InfeasibleError, match="cannot hold together") as caught:
        plan_within(tiny, 0.5, limits)
    for name in NAMES:
        assert f"--capacity-tokens {name}=100" in str(caught.value)
    assert "queries to" not in str(caught.value)


def test_a_conflict_leaves_out_what_is_not_part_of_it(hosts, workload):
    """A share and a capacity of one model; the other model's capacity is not blamed."""
    bounds = share_bounds(NAMES, workload.queries, least={"large": 0.5})
    problem = make_problem(hosts, workload, bounds)
    with pytest.raises(InfeasibleError) as caught:
        plan_within(problem, 0.5, Limits(tokens={"large": 500, "small": 1e7}))
    assert "at least 150 of 300 queries to large" in str(caught.value)
    assert "--capacity-tokens large=500" in str(caught.value)
    assert "small" not in str(caught.value)


def test_a_solver_that_gives_up_is_not_taken_for_a_conflict(tiny, monkeypatch):
    """Running out of time proves nothing about the constraints."""
    monkeypatch.setattr("pytest_llmenergy.routing.pulp_solver.solve", lambda *_: "time-limit")
    with pytest.raises(RequestError, match="PuLP ended time-limit") as caught:
        plan_within(tiny, 0.5, Limits(gpu_budget=6, horizon_s=1.5))
    assert not isinstance(caught.value, InfeasibleError)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(tokens={"x": 5}), "no such model"),
        (Limits(tokens={"small": -1}), "out of range"),
        (Limits(gpu_budget=0, horizon_s=1), "at least one GPU"),
        (Limits(gpu_budget=4), "needs --horizon"),
        (Limits(gpu_budget=4, horizon_s=float("inf"), gpus_each=dict.fromkeys(NAMES, 1)), "needs --horizon"),
        (Limits(tokens={"small": float("inf")}), "out of range"),
        (Limits(horizon_s=4), "says nothing without --gpu-budget"),
        (Limits(gpus_each={"small": 0}), "out of range"),
    ],
)
def test_limits_that_make_no_sense_are_refused(hosts, limits, words):
    """Each with its own message."""
    with pytest.raises(RequestError, match=words):
        check_limits(limits, hosts)


def test_gpu_seconds_need_a_runtime_and_gpus(hosts):
    """What they are counted in must be known."""
    from dataclasses import replace

    with pytest.raises(RequestError, match="need a fit of runtime_s for small"):
        check_limits(Limits(gpu_s={"small": 5}), [replace(hosts[0], runtime=None)])
    nameless = replace(hosts[0], energy=replace(hosts[0].energy, n_gpus=None))
    with pytest.raises(RequestError, match="how many GPUs one instance of small takes"):
        check_limits(Limits(gpu_s={"small": 5}), [nameless])
    check_limits(Limits(gpu_s={"small": 5}, gpus_each={"small": 2}), [nameless])
