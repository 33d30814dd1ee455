"""How far the fits' uncertainty reaches."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.plan import point_entry
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.uncertainty import coin_toss, energy_half_width_j

NAMES = ("small", "medium", "large")
TERMS = ("tokens_in", "tokens_out", "tokens_in*tokens_out")


def unsure(hosts, share, df=200):
    """Each coefficient has a standard error of that share of its value, independently."""
    sure = []
    for host in hosts:
        errors = [share * host.energy.coefficients[term] for term in TERMS]
        fit = replace(
            host.energy,
            covariance=tuple(tuple(row) for row in np.diag(np.square(errors)).tolist()),
            residual_scale=0.0,
            df_resid=df,
        )
        sure.append(replace(host, energy=fit))
    return sure


def planned(hosts, workload, zeta=0.3):
    problem = make_problem(hosts, workload, share_bounds(NAMES, workload.queries))
    return problem, plan_at(problem, zeta)


def test_the_interval_covers_the_truth_as_often_as_it_says(hosts, workload):
    """Fits that err as their covariance says, priced again with the true coefficients: 95 % lie inside."""
    problem, point = planned(unsure(hosts, 0.1), workload)
    half_j = energy_half_width_j(problem, point.solution.flow, 0.95)
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(400):
        truth = 0.0
        for k, host in enumerate(problem.hosts):
            drawn = {
                term: value * (1 + 0.1 * rng.normal()) for term, value in host.energy.coefficients.items()
            }
            fit = replace(host.energy, coefficients=drawn)
            truth += point.solution.flow[k] @ fit.predict(workload.tokens_in, workload.tokens_out).mean
        inside += abs(truth - point.totals.energy_j) <= half_j
    assert 0.91 <= inside / 400 <= 0.99


def test_residuals_of_classes_are_their_own(hosts, workload):
    """With exact coefficients, the residual of a class is shared by its queries and no others."""
    fits = [
        replace(
            h, energy=replace(h.energy, covariance=((0.0,) * 3,) * 3, residual_scale=2.0, df_resid=10_000)
        )
        for h in hosts
    ]
    problem, point = planned(fits, workload)
    expected = 1.96 * 2.0 * np.sqrt(np.sum(point.solution.flow.astype(float) ** 2))
    assert energy_half_width_j(problem, point.solution.flow, 0.95) == pytest.approx(expected, rel=1e-3)


def test_published_coefficients_have_no_interval(hosts, workload):
    """Unknown stays unknown."""
    problem, point = planned(hosts, workload)
    assert energy_half_width_j(problem, point.solution.flow, 0.95) is None
    assert coin_toss(problem, point.solution, 0.3, 0.95) is None


def test_a_coin_toss_grows_with_the_error(hosts, workload):
    """None where the fits are exact, all where they know nothing; energy alone is uncertain."""
    tosses = []
    for share in (1e-9, 0.05, 50.0):
        problem, point = planned(unsure(hosts, share), workload)
        tosses.append(coin_toss(problem, point.solution, 0.3, 0.95).queries)
        assert coin_toss(problem, point.solution, 0.0, 0.95).queries == 0
    assert tosses[0] <= 3
    assert tosses[0] < tosses[1] < tosses[2] == workload.queries


def test_a_class_that_the_plan_divides_is_a_coin_toss_at_its_prices(hosts, workload):
    """However sure the fits are: it goes to two models since they are worth the same."""
    workload = replace(workload, counts=7 * workload.counts)
    problem, point = planned(unsure(hosts, 1e-6), workload)
    divided = (point.solution.flow > 0).sum(axis=0) > 1
    assert divided.any()
    toss = coin_toss(problem, point.solution, 0.3, 0.95)
    assert workload.counts[divided].sum() <= toss.queries < 0.5 * workload.queries


def test_a_relative_residual_is_a_part_of_what_is_predicted(hosts, workload):
    """A fit of relative errors that is 10 % off a class is 10 % of that class's energy off."""
    fits = [
        replace(
            h,
            energy=replace(
                h.energy, covariance=((0.0,) * 3,) * 3, residual_scale=0.1, df_resid=10_000, relative=True
            ),
        )
        for h in hosts
    ]
    problem, point = planned(fits, workload)
    expected = 1.96 * 0.1 * np.sqrt(np.sum((point.solution.flow * problem.energy_j) ** 2))
    assert energy_half_width_j(problem, point.solution.flow, 0.95) == pytest.approx(expected, rel=1e-3)


def test_a_part_of_a_call_has_its_part_of_the_error(hosts, workload):
    """Fitted on calls of 32, a query's interval is a thirty-second of the call's, and no toss is fairer."""
    one = unsure(hosts, 0.05)
    many = [replace(h, energy=replace(h.energy, batch_size=32)) for h in one]
    (problem, point), (problem_32, _) = planned(one, workload), planned(many, workload)
    half_j = energy_half_width_j(problem, point.solution.flow, 0.95)
    assert energy_half_width_j(problem_32, point.solution.flow, 0.95) == pytest.approx(half_j / 32)
    tosses = coin_toss(problem, point.solution, 0.3, 0.95), coin_toss(problem_32, point.solution, 0.3, 0.95)
    assert tosses[0].queries == tosses[1].queries > 0


def test_a_coin_toss_says_between_which_models_and_where(hosts, workload):
    """Its pairs add up to its queries, and each query named lies between the counts given."""
    problem, point = planned(unsure(hosts, 0.05), workload)
    toss = coin_toss(problem, point.solution, 0.3, 0.95)
    assert sum(pair.queries for pair in toss.between) == toss.queries
    assert [pair.queries for pair in toss.between] == sorted((p.queries for p in toss.between), reverse=True)
    for pair in toss.between:
        inside = (workload.tokens_in >= pair.tokens_in[0]) & (workload.tokens_in <= pair.tokens_in[1])
        inside &= (workload.tokens_out >= pair.tokens_out[0]) & (workload.tokens_out <= pair.tokens_out[1])
        assert workload.counts[inside].sum() >= pair.queries
        assert pair.models in {("small", "medium"), ("medium", "large"), ("small", "large")}
    # With energy alone to decide and no price, the two cheapest are the small and the medium one.
    free = {"least": dict.fromkeys(NAMES, 0), "most": dict.fromkeys(NAMES, 1)}
    problem = make_problem(unsure(hosts, 5.0), workload, share_bounds(NAMES, workload.queries, **free))
    only = coin_toss(problem, plan_at(problem, 1.0).solution, 1.0, 0.95).between
    assert [(pair.models, pair.queries) for pair in only] == [(("small", "medium"), workload.queries)]
    assert only[0].tokens_in == (workload.tokens_in.min(), workload.tokens_in.max())
    assert only[0].tokens_out == (workload.tokens_out.min(), workload.tokens_out.max())


def test_a_plan_document_holds_the_interval(hosts, workload):
    """From low to high, the plan's energy between; unknown where the fits do not know."""
    problem, point = planned(unsure(hosts, 0.1), workload)
    half_j = energy_half_width_j(problem, point.solution.flow, 0.9)
    entry = point_entry(problem, point, 0.9)
    assert entry["energy_low_j"] == pytest.approx(entry["energy_j"] - half_j)
    assert entry["energy_high_j"] == pytest.approx(entry["energy_j"] + half_j)
    assert sum(pair["queries"] for pair in entry["coin_toss_between"]) == entry["coin_toss_queries"]
    problem, point = planned(hosts, workload)
    assert point_entry(problem, point, 0.9)["energy_low_j"] is None
