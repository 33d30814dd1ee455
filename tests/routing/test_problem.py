"""Equation 2 and the shares."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.problem import largest_remainder, make_problem, share_bounds
from pytest_llmenergy.routing.workload import workload_of

NAMES = ("a", "b", "c")


def test_costs_are_equation_2_with_dynamic_normalisation(problem):
    """Energy and accuracy are divided by their largest values over all pairs of the workload."""
    zeta = 0.3
    tokens = problem.workload.tokens_in + problem.workload.tokens_out
    accuracy = problem.accuracies[:, None] * tokens
    expected = zeta * problem.energy_j / problem.energy_j.max() - (1 - zeta) * accuracy / accuracy.max()
    np.testing.assert_allclose(problem.costs(zeta), expected, rtol=1e-12)


def test_swapping_two_unlike_queries_changes_the_objective(problem):
    """The artefact's objective is blind to which query goes where; this one is not."""
    flow = np.zeros_like(problem.energy_j, dtype=np.int64)
    flow[0] = problem.workload.counts
    lengths = problem.workload.tokens_out
    short, long = int(lengths.argmin()), int(lengths.argmax())
    one, other = flow.copy(), flow.copy()
    one[:, short] = np.roll(one[:, short], 2)
    other[:, long] = np.roll(other[:, long], 2)
    assert problem.workload.counts[short] >= 1
    costs = problem.costs(0.5)
    assert np.vdot(costs, one) != pytest.approx(np.vdot(costs, other))


def test_totals_weigh_accuracy_by_tokens(hosts):
    """One long query at the accurate model counts for more than one short one at the other."""
    queries = workload_of([10, 10], [90, 890])
    problem = make_problem(
        hosts,
        queries,
        share_bounds([h.name for h in hosts], 2, least=dict.fromkeys(("small", "medium", "large"), 0)),
    )
    flow = np.array([[1, 0], [0, 0], [0, 1]])
    totals = problem.totals(flow)
    assert totals.accuracy == pytest.approx((100 * 0.5 + 900 * 0.65) / 1000)
    assert totals.energy_j == pytest.approx(1.0 * (1 + 90 + 0.9) + 12.0 * (1 + 890 + 8.9))


def test_shares_are_rounded_by_largest_remainder():
    """Counts add up to the queries, and none is a query further from its share than it must be."""
    assert largest_remainder([0.05, 0.2, 0.75], 52_002).tolist() == [2_600, 10_400, 39_002]
    assert largest_remainder([1 / 3, 1 / 3, 1 / 3], 100).tolist() == [34, 33, 33]
    assert largest_remainder([0.29, 0.71], 100).tolist() == [29, 71]  # 0.29 * 100 < 29 in floats


def test_equation_3_gives_each_model_some_and_none_all():
    """Without shares each model gets between 1 and all but 1."""
    lower, upper = share_bounds(NAMES, 10)
    assert lower.tolist() == [1, 1, 1]
    assert upper.tolist() == [9, 9, 9]


def test_bounds_replace_equation_3_where_given():
    """A least share of 0 lets a model stand idle; a whole share is not lost to rounding."""
    lower, upper = share_bounds(NAMES, 100, least={"a": 0.07, "b": 0.0}, most={"c": 0.29, "a": 1.0})
    assert lower.tolist() == [7, 0, 1]
    assert upper.tolist() == [100, 99, 29]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"exact": {"a": 0.5, "b": 0.3, "c": 0.1}}, "sum to 0.9, not 1"),
        ({"exact": {"a": 0.5, "b": 0.5}}, "nothing for c"),
        ({"exact": {"a": 0.5, "x": 0.5}}, "--share x: no such model"),
        ({"least": {"a": 1.2}}, "between 0 and 1"),
        ({"least": {"a": float("nan")}}, "between 0 and 1"),
        ({"least": {"a": 0.6, "b": 0.6}}, "cannot give each of 3 models its least"),
        ({"most": {"a": 0.1, "b": 0.1, "c": 0.1}}, "largest shares sum"),
        ({"least": {"a": 0.5}, "most": {"a": 0.1}}, "above --max-share"),
        ({"exact": {"a": 0.5, "b": 0.3, "c": 0.2}, "least": {"a": 0.1}}, "leave --min-share"),
    ],
)
def test_shares_that_make_no_sense_are_refused(arguments, words):
    """Each with its own message."""
    with pytest.raises(RequestError, match=words):
        share_bounds(NAMES, 100, **arguments)


def test_too_few_queries_for_equation_3_are_refused():
    """Two queries cannot give three models one each."""
    with pytest.raises(RequestError, match="cannot give each of 3 models its least"):
        share_bounds(NAMES, 2)


def test_one_model_alone_is_refused():
    """Equation 3 has no solution for it."""
    with pytest.raises(RequestError, match="Add the fit of another model"):
        share_bounds(["a"], 10)


@pytest.mark.parametrize("zeta", [-0.1, 1.1, float("nan")])
def test_zeta_outside_its_range_is_refused(problem, zeta):
    """It is a weight between 0 and 1."""
    with pytest.raises(RequestError, match="zeta"):
        plan_at(problem, zeta)


def test_negative_predictions_count_as_zero_and_are_counted(hosts):
    """The paper's form lets energy fall below 0; no query gives energy back."""
    odd = replace(
        hosts[0], energy=replace(hosts[0].energy, coefficients={"tokens_in": -1.0, "tokens_out": 1.0})
    )
    queries = workload_of([10, 1], [5, 5], [3, 1])
    problem = make_problem((odd, *hosts[1:]), queries, share_bounds([h.name for h in hosts], 4))
    assert problem.negative_pairs == 3
    assert problem.energy_j.min() == 0


def test_queries_beyond_the_fitted_range_are_counted(hosts):
    """A prediction there is an extrapolation, and the report says so."""
    ranged = replace(
        hosts[0], energy=replace(hosts[0].energy, tokens_in_range=(8, 64), tokens_out_range=(8, 64))
    )
    queries = workload_of([8, 64, 65, 8], [8, 64, 8, 7], [1, 1, 5, 2])
    problem = make_problem((ranged, *hosts[1:]), queries, share_bounds([h.name for h in hosts], 9))
    assert problem.outside == 7


def test_a_query_is_a_part_of_a_fitted_call(hosts, workload):
    """A call of 32 sequences costs each of them a thirty-second part."""
    batched = [
        replace(h, energy=replace(h.energy, batch_size=32), runtime=replace(h.runtime, batch_size=32))
        for h in hosts
    ]
    bounds = share_bounds([h.name for h in hosts], workload.queries)
    one, many = make_problem(hosts, workload, bounds), make_problem(batched, workload, bounds)
    np.testing.assert_allclose(many.energy_j * 32, one.energy_j)
    np.testing.assert_allclose(many.runtime_s * 32, one.runtime_s)


def test_a_query_waits_for_the_whole_of_its_call(hosts, workload):
    """A latency limit looks at the call of 32, not at a query's part of it."""
    batched = [replace(h, runtime=replace(h.runtime, batch_size=32)) for h in hosts]
    bounds = share_bounds([h.name for h in hosts], workload.queries)
    problem = make_problem(batched, workload, bounds, latency_s=5.0)
    np.testing.assert_allclose(problem.call_s, 32 * problem.runtime_s)
    np.testing.assert_array_equal(problem.allowed, problem.call_s <= 5.0)


def test_no_query_gives_time_back(hosts):
    """A runtime predicted below 0 counts as 0, as an energy does."""
    odd = replace(hosts[0], runtime=replace(hosts[0].runtime, coefficients={"tokens_in": -1.0}))
    queries = workload_of([10, 1], [5, 5], [3, 1])
    problem = make_problem((odd, *hosts[1:]), queries, share_bounds([h.name for h in hosts], 4))
    assert problem.runtime_s.min() == 0
