"""Answers whose length nobody knows yet."""

from dataclasses import replace

import numpy as np
import pytest

from pytest_llmenergy.routing.frontier import plan_at
from pytest_llmenergy.routing.lengths import blind_problem, in_hindsight, learn_lengths
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.workload import Workload, workload_of

NAMES = ("small", "medium", "large")


@pytest.fixture
def history():
    """Short prompts get answers of 10 or 30 tokens, long ones of 200."""
    return workload_of([5] * 100 + [50] * 100, [10] * 75 + [30] * 25 + [200] * 100)


@pytest.fixture
def coming():
    """Twenty short prompts, ten long ones."""
    return Workload(
        tokens_in=np.array([5, 50]),
        tokens_out=np.array([0, 0]),
        counts=np.array([20, 10]),
        lengths_known=False,
    )


def test_lengths_are_learnt_by_prompt_length(history):
    """A bin's distribution is that of its own queries."""
    lengths = learn_lengths(history, least_queries=50)
    outs, chances = lengths.given(5)
    assert dict(zip(outs.tolist(), chances.tolist(), strict=True)) == {10: 0.75, 30: 0.25}
    assert lengths.given(50)[0].tolist() == [200]
    assert lengths.given(1)[0].tolist() == [10, 30]  # shorter than any seen: the shortest bin
    assert lengths.given(10**6)[0].tolist() == [200]


def test_bins_are_wide_enough_to_learn_from(history):
    """With fewer queries than a bin needs there is one bin."""
    lengths = learn_lengths(history, least_queries=150)
    assert len(lengths.outs) == 1
    assert lengths.chances[0].sum() == pytest.approx(1)


def test_costs_are_expectations(history, coming, hosts):
    """Energy of the product form is not that of the mean length, but its mean."""
    lengths = learn_lengths(history, least_queries=50)
    blind = blind_problem(hosts, coming, share_bounds(NAMES, 30), lengths)
    for k, host in enumerate(hosts):
        ten, thirty = host.energy_of(np.array([5, 5]), np.array([10, 30]))
        assert blind.energy_j[k, 0] == pytest.approx(0.75 * ten + 0.25 * thirty)
    assert blind.tokens.tolist() == [5 + 15, 50 + 200]


def test_zeta_means_what_it_means_where_lengths_are_known(history, coming, hosts):
    """Normalised by the largest query that may come, not by the largest expectation."""
    blind = blind_problem(hosts, coming, share_bounds(NAMES, 30), learn_lengths(history, least_queries=50))
    known = make_problem(hosts, history, share_bounds(NAMES, 200))
    assert blind.energy_scale_j == pytest.approx(known.energy_scale_j)
    assert blind.accuracy_scale == pytest.approx(known.accuracy_scale)


def test_a_blind_plan_is_exact_and_no_better_than_a_knowing_one(history, hosts):
    """On the very queries lengths were learnt from: the expectation holds, knowledge can only help."""
    lengths = learn_lengths(history, least_queries=50)
    bounds = share_bounds(NAMES, 200, exact={"small": 0.4, "medium": 0.4, "large": 0.2})
    prompts = Workload(
        tokens_in=np.array([5, 50]),
        tokens_out=np.array([0, 0]),
        counts=np.array([100, 100]),
        lengths_known=False,
    )
    blind = blind_problem(hosts, prompts, bounds, lengths)
    known = make_problem(hosts, history, bounds)
    point = plan_at(blind, 0.5)
    assert point.solution.gap == 0
    mean = in_hindsight(blind, point.solution.flow, known)
    assert mean.sum(axis=0).tolist() == history.counts.tolist()
    after = known.totals(mean)
    assert after.energy_j == pytest.approx(point.totals.energy_j)
    assert after.accuracy == pytest.approx(point.totals.accuracy)
    assert plan_at(known, 0.5).solution.objective <= known.objective(after, 0.5) + 1e-12


def test_what_is_counted_of_known_lengths_is_expected_of_unknown_ones(coming, hosts):
    """Predictions below 0, queries beyond the fits, parts of a call, and the largest query that may come."""
    history = workload_of([5] * 100 + [50] * 100, [10] * 75 + [30] * 25 + [200] * 50 + [400] * 50)
    small = replace(
        hosts[0],
        energy=replace(
            hosts[0].energy,
            coefficients={"tokens_in": -4.0, "tokens_out": 1.0},  # below 0 for 5 in, 10 out
            tokens_in_range=(1, 60),
            tokens_out_range=(1, 300),  # answers of 400 are beyond it
        ),
        runtime=replace(hosts[0].runtime, batch_size=8),
    )
    bounds = share_bounds(NAMES, 30)
    blind = blind_problem([small, *hosts[1:]], coming, bounds, learn_lengths(history, least_queries=50))
    assert blind.negative_pairs == 15  # of 20 prompts of 5 tokens, three quarters
    assert blind.outside == 5  # of 10 prompts of 50 tokens, a half
    known = make_problem([small, *hosts[1:]], history, share_bounds(NAMES, 200))
    assert blind.energy_scale_j == pytest.approx(known.energy_scale_j)
    assert blind.accuracy_scale == pytest.approx(known.accuracy_scale)
    calls_s = small.call_s_of(np.array([5, 5]), np.array([10, 30]))
    assert blind.runtime_s[0, 0] == pytest.approx((0.75 * calls_s[0] + 0.25 * calls_s[1]) / 8)
