"""Prices and carbon over time, and queries that may wait."""

import itertools

import numpy as np
import polars as pl
import pytest

from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.routing.operators import Limits
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.solve import InfeasibleError
from pytest_llmenergy.routing.windows import (
    plan_in_windows,
    read_timed_workload,
    read_windows,
    write_timed_assignment,
)

NAMES = ("small", "medium", "large")


@pytest.fixture
def windows(tmp_path):
    """Dear, cheap, dearest."""
    path = tmp_path / "windows.csv"
    path.write_text("start_s,end_s,carbon_g_per_kwh\n0,100,300\n100,200,50\n200,300,400\n")
    return read_windows(path)


@pytest.fixture
def timed(tmp_path, windows):
    path = tmp_path / "timed.csv"
    path.write_text(
        "tokens_in,tokens_out,arrival_s,deadline_s\n"
        "5,100,0,99\n"  # must go at once
        "5,100,0,150\n"  # may wait for the cheap window
        "5,100,120,299\n"  # arrives in the cheap one
        "8,40,210,299\n"  # too late for it
        "8,40,50,250\n"
    )
    return read_timed_workload(path, windows)


def problem_of(hosts, timed, **shares):
    bounds = share_bounds(NAMES, timed.workload.queries, **shares)
    return make_problem(hosts, timed.workload, bounds)


def free(hosts, timed):
    return problem_of(hosts, timed, least=dict.fromkeys(NAMES, 0), most=dict.fromkeys(NAMES, 1))


def test_windows_a_query_may_use_run_from_arrival_to_deadline(timed):
    """Classes are equal in tokens and windows; the deadline is the latest start."""
    rows = {
        (int(t), int(f), int(n))
        for t, f, n in zip(timed.workload.tokens_in, timed.first, timed.last, strict=True)
    }
    assert rows == {(5, 0, 0), (5, 0, 1), (5, 1, 2), (8, 2, 2), (8, 0, 2)}


def test_a_query_may_start_at_its_deadline_and_no_earlier_than_it_arrives(tmp_path, windows):
    """A window that begins at the deadline will do; one that ends at the arrival will not."""
    path = tmp_path / "edges.csv"
    path.write_text("tokens_in,tokens_out,arrival_s,deadline_s\n5,100,0,100\n8,40,100,150\n")
    found = read_timed_workload(path, windows)
    assert sorted(zip(found.first.tolist(), found.last.tolist(), strict=True)) == [(0, 1), (1, 1)]


def test_below_zero_too_the_lowest_price_is_the_best(hosts, timed, tmp_path):
    """At noon the grid pays whoever takes its energy."""
    path = tmp_path / "negative.csv"
    path.write_text("start_s,end_s,price_per_kwh\n0,100,-0.1\n100,200,-0.3\n200,300,-0.2\n")
    negative = read_windows(path)
    plan = plan_in_windows(free(hosts, timed), timed, negative, 1.0, Limits())
    assert plan.flow.sum(axis=(0, 2)).tolist() == [1, 3, 1]
    assert plan.cost < plan.cost_at_once < 0


def test_a_row_that_counts_for_many_is_many(tmp_path, windows, hosts):
    """In the plan's sums as in the file it writes."""
    path = tmp_path / "counted.csv"
    path.write_text("tokens_in,tokens_out,arrival_s,count\n5,100,0,3\n8,40,210,2\n")
    counted = read_timed_workload(path, windows)
    assert counted.workload.queries == 5
    plan = plan_in_windows(free(hosts, counted), counted, windows, 1.0, Limits())
    assert plan.flow.sum(axis=(0, 2)).tolist() == [0, 3, 2]
    write_timed_assignment(tmp_path / "plan.csv", counted, plan, NAMES)
    assert len(pl.read_csv(tmp_path / "plan.csv")) == 5


def test_queries_wait_for_the_cheapest_window_they_may(hosts, timed, windows):
    """With energy alone to decide, three of the five go when the grid is clean."""
    plan = plan_in_windows(free(hosts, timed), timed, windows, 1.0, Limits())
    assert plan.flow.sum(axis=(0, 2)).tolist() == [1, 3, 1]
    assert plan.point.solution.gap == 0
    assert plan.cost < plan.cost_at_once
    # With energy alone to decide the models are the same, so what is saved is saved by waiting.
    assert plan.best_at_once == pytest.approx(plan.cost_at_once)


def test_what_waiting_saves_is_told_at_the_same_models(hosts, timed, windows):
    """A clean window may be used for a dearer model; that is no cost of waiting."""
    problem = free(hosts, timed)
    plan = plan_in_windows(problem, timed, windows, 0.05, Limits())
    joules = (plan.flow.sum(axis=1) * problem.energy_j).sum(axis=0)
    expected = joules @ windows.rate[timed.first] / 3.6e6
    assert plan.cost_at_once == pytest.approx(expected)
    assert plan.cost < plan.cost_at_once


def brute_force(problem, timed, windows, zeta, feasible):
    scale = problem.energy_scale_j * windows.rate.max()
    best = np.inf
    classes = range(len(timed.workload.counts))
    for choice in itertools.product(itertools.product(range(3), range(3)), repeat=len(timed.workload.counts)):
        if any(not timed.first[c] <= choice[c][1] <= timed.last[c] for c in classes):
            continue
        if not feasible(choice):
            continue
        best = min(
            best,
            sum(
                zeta * problem.energy_j[choice[c][0], c] * windows.rate[choice[c][1]] / scale
                - (1 - zeta) * problem.accuracy_values()[choice[c][0], c]
                for c in classes
            ),
        )
    return best


@pytest.mark.parametrize("zeta", [0.3, 0.8])
def test_capacities_hold_in_each_window(hosts, timed, windows, zeta):
    """Against every assignment of five queries to three models in three windows."""
    problem = free(hosts, timed)
    limits = Limits(tokens=dict.fromkeys(NAMES, 110))
    tokens = problem.workload.tokens

    def feasible(choice):
        used = np.zeros((3, 3))
        for c, (k, w) in enumerate(choice):
            used[k, w] += tokens[c]
        return used.max() <= 110

    plan = plan_in_windows(problem, timed, windows, zeta, limits)
    assert np.einsum("kwc,c->kw", plan.flow, tokens).max() <= 110
    expected = brute_force(problem, timed, windows, zeta, feasible)
    assert plan.point.solution.objective == pytest.approx(expected, abs=1e-9)
    assert plan.point.solution.dual_bound <= plan.point.solution.objective + 1e-12


def test_shares_hold_over_all_windows(hosts, timed, windows):
    """The count of a model is that of the whole plan."""
    problem = problem_of(hosts, timed, exact={"small": 0.4, "medium": 0.4, "large": 0.2})
    plan = plan_in_windows(problem, timed, windows, 0.5, Limits())
    assert plan.flow.sum(axis=(1, 2)).tolist() == [2, 2, 1]


def test_capacities_that_do_not_suffice_are_named(hosts, timed, windows):
    """With the window in which they bind."""
    limits = Limits(tokens=dict.fromkeys(NAMES, 40))
    with pytest.raises(InfeasibleError, match="in window 0"):
        plan_in_windows(free(hosts, timed), timed, windows, 0.5, limits)


def test_a_gpu_budget_cannot_be_combined(hosts, timed, windows):
    """It is refused, not ignored."""
    with pytest.raises(RequestError, match="cannot be combined"):
        plan_in_windows(free(hosts, timed), timed, windows, 0.5, Limits(gpu_budget=3, horizon_s=5))


def test_the_plan_is_written_in_the_workloads_order(hosts, timed, windows, tmp_path):
    """One row a query, with its model and its window."""
    plan = plan_in_windows(free(hosts, timed), timed, windows, 1.0, Limits())
    for ending in ("csv", "parquet"):
        out = tmp_path / f"plan.{ending}"
        write_timed_assignment(out, timed, plan, NAMES)
        rows = (pl.read_csv(out) if ending == "csv" else pl.read_parquet(out)).rows()
        assert rows == [
            (5, 100, "small", 0),
            (5, 100, "small", 1),
            (5, 100, "small", 1),
            (8, 40, "small", 2),
            (8, 40, "small", 1),
        ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("start_s,end_s\n0,1\n", "no rate"),
        ("start_s,price_per_kwh\n0,1\n", "no column 'end_s'"),
        ("start_s,end_s,price_per_kwh\n0,10,1\n5,20,1\n", "overlap"),
        ("start_s,end_s,price_per_kwh\n0,10,\n", "empty cell"),
        ("start_s,end_s,price_per_kwh\n0,x,1\n", "cannot be read"),
        ("start_s,end_s,price_per_kwh\n", "no windows"),
    ],
)
def test_windows_that_make_no_sense_are_refused(tmp_path, text, words):
    """Each with its own message."""
    path = tmp_path / "w.csv"
    path.write_text(text)
    with pytest.raises(DocumentError, match=words):
        read_windows(path)


def test_queries_outside_all_windows_are_refused(tmp_path, windows):
    """With the first of them."""
    path = tmp_path / "w.csv"
    path.write_text("tokens_in,tokens_out,arrival_s\n1,1,0\n1,1,300\n")
    with pytest.raises(DocumentError, match="query 2 can be served in no window"):
        read_timed_workload(path, windows)
