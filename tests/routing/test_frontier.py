"""The sweep over zeta, and the zeta that just meets a demand."""

import itertools

import numpy as np
import polars as pl
import pytest

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.baselines import baselines, round_robin
from pytest_llmenergy.routing.frontier import at_accuracy, at_energy, between, plan_at, sweep
from pytest_llmenergy.routing.problem import Problem, make_problem, share_bounds
from pytest_llmenergy.routing.workload import read_workload, workload_of

ZETAS = np.linspace(0, 1, 21)


def test_energy_and_accuracy_never_rise_with_zeta(problem):
    """The mark of an optimum, which the artefact's Figure 3 lacks."""
    points = sweep(problem, ZETAS)
    energies = [p.totals.energy_j for p in points]
    accuracies = [p.totals.accuracy for p in points]
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(energies))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(accuracies))
    assert energies[0] > 2 * energies[-1]


def test_each_point_of_a_sweep_is_the_optimum_of_its_own(problem):
    """Starting from the last prices changes nothing."""
    for point in sweep(problem, ZETAS):
        assert point.solution.gap == 0
        assert point.solution.objective == pytest.approx(
            plan_at(problem, point.zeta).solution.objective, rel=1e-12
        )


def test_the_objective_of_totals_is_that_of_the_assignment(problem):
    """Totals are enough to tell what a plan would cost at another zeta."""
    point = plan_at(problem, 0.3)
    assert problem.objective(point.totals, 0.3) == pytest.approx(point.solution.objective, rel=1e-9)


def test_the_bound_between_points_holds(problem):
    """No zeta between two points has a plan that much cheaper than its neighbours'."""
    points = sweep(problem, [0.0, 0.2, 0.5, 1.0])
    worst = between(problem, points)
    assert worst > 0
    for zeta in np.linspace(0.01, 0.99, 45):
        best = plan_at(problem, zeta).solution.objective
        known = min(problem.objective(p.totals, zeta) for p in points)
        assert known - best <= worst * max(abs(known), abs(best)) * (1 + 1e-9)


def test_an_accuracy_is_met_by_the_cheapest_plan_of_the_frontier(problem):
    """At the zeta found, both neighbours cost the same; just beyond it the accuracy is missed."""
    goal = 0.58
    point = at_accuracy(problem, goal)
    assert point.totals.accuracy >= goal
    assert plan_at(problem, point.zeta * (1 + 1e-6)).totals.accuracy < goal
    assert problem.objective(point.totals, point.zeta) == pytest.approx(
        plan_at(problem, point.zeta).solution.objective, rel=1e-11
    )
    assert point.energy_bound_j < point.totals.energy_j
    assert point.energy_bound_j == pytest.approx(point.totals.energy_j, rel=0.02)


def test_an_energy_is_met_by_the_most_accurate_plan_of_the_frontier(problem):
    """Just before the zeta found, the energy is exceeded."""
    goal_j = 0.5 * (plan_at(problem, 0).totals.energy_j + plan_at(problem, 1).totals.energy_j)
    point = at_energy(problem, goal_j)
    assert point.totals.energy_j <= goal_j
    assert plan_at(problem, point.zeta * (1 - 1e-6)).totals.energy_j > goal_j
    assert point.accuracy_bound >= point.totals.accuracy


def test_demands_nobody_can_meet_say_what_can_be_had(problem):
    """The message holds the best there is."""
    with pytest.raises(RequestError, match=r"the most is 0\.64"):
        at_accuracy(problem, 0.66)
    with pytest.raises(RequestError, match="the least is"):
        at_energy(problem, 1.0)


def test_demands_every_plan_meets_are_met_at_the_ends(problem):
    """An easy accuracy leaves energy alone to decide, an easy energy accuracy alone."""
    assert at_accuracy(problem, 0.1).zeta == 1
    assert at_energy(problem, 1e12).zeta == 0


def test_baselines_are_those_of_figure_3(problem):
    """Each model alone, round robin and random; none beats the optimum at its own accuracy."""
    found = {b.name: b for b in baselines(problem, seed=1)}
    assert list(found) == ["small", "medium", "large", "round-robin", "random"]
    queries = problem.workload.queries
    assert found["medium"].totals.counts.tolist() == [0, queries, 0]
    assert found["round-robin"].totals.counts.tolist() == [100, 100, 100]
    rival = found["round-robin"].rival
    assert rival.totals.accuracy >= found["round-robin"].totals.accuracy
    assert found["round-robin"].saving == 1 - rival.totals.energy_j / found["round-robin"].totals.energy_j
    assert found["round-robin"].saving > 0.1
    # Equation 3 keeps the optimum from being one model alone, and the random plan exactly right.
    assert found["random"].totals.counts.sum() == queries
    again = {b.name: b for b in baselines(problem, seed=1)}
    assert found["random"].totals.counts.tolist() == again["random"].totals.counts.tolist()


def test_random_is_a_fair_die(hosts):
    """Each model gets a third, as nearly as chance has it."""
    workload = workload_of([5, 9], [20, 30], [15_000, 15_000])
    problem = make_problem(hosts, workload, share_bounds([h.name for h in hosts], 30_000))
    found = {b.name: b for b in baselines(problem, seed=1)}
    assert np.abs(found["random"].totals.counts - 10_000).max() < 400


def test_shares_that_rule_out_an_accuracy_leave_nothing_to_compare(hosts, workload):
    """Three quarters for the large model are no saving, and no loss, against the small one alone."""
    names = [h.name for h in hosts]
    bounds = share_bounds(names, workload.queries, exact=dict(zip(names, (0.05, 0.2, 0.75), strict=True)))
    found = {b.name: b for b in baselines(make_problem(hosts, workload, bounds), seed=1)}
    assert found["small"].rival is None
    assert found["small"].saving is None
    assert found["large"].rival is None


def test_round_robin_goes_on_from_batch_to_batch(tmp_path, hosts, monkeypatch):
    """A workload read in parts is still dealt out in turn."""
    monkeypatch.setattr("pytest_llmenergy.routing.workload._ROWS_A_BATCH", 64)
    path = tmp_path / "w.parquet"
    rng = np.random.default_rng(3)
    rows = pl.DataFrame({"tokens_in": rng.integers(1, 9, 500), "tokens_out": rng.integers(1, 9, 500)})
    rows.write_parquet(path, row_group_size=50)
    workload = read_workload(path)
    problem = make_problem(hosts, workload, share_bounds([h.name for h in hosts], 500))
    expected = np.zeros(problem.energy_j.shape, int)
    where = workload.finder()(rows["tokens_in"].to_numpy(), rows["tokens_out"].to_numpy())
    np.add.at(expected, (np.arange(500) % 3, where), 1)
    assert round_robin(problem).tolist() == expected.tolist()


def test_round_robin_follows_the_workloads_order(tmp_path, hosts):
    """Query i goes to model i mod K, counts spread out."""
    path = tmp_path / "w.csv"
    path.write_text("tokens_in,tokens_out,count\n9,9,1\n1,1,4\n5,5,1\n")
    workload = read_workload(path)
    problem = make_problem(hosts, workload, share_bounds([h.name for h in hosts], workload.queries))
    # order: (9,9) (1,1) (1,1) (1,1) (1,1) (5,5); classes are sorted: (1,1), (5,5), (9,9)
    assert round_robin(problem).tolist() == [[1, 0, 1], [2, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    ("zeta", "energy_j", "accuracy"),
    [
        (0.0, 3_456_233_797.8, 0.6404177),
        (0.5, 1_707_183_724.4, 0.5929955),
        (1.0, 1_692_791_802.1, 0.5901206),
    ],
)
def test_the_papers_case_study(alpaca: Problem, zeta, energy_j, accuracy):
    """The Llama-2 trio on an Alpaca-like workload, shares .05, .2, .75: what the right objective gives."""
    point = plan_at(alpaca, zeta)
    assert point.solution.gap == 0
    assert point.totals.counts.tolist() == [2_600, 10_400, 39_002]
    # At zeta 0 plans of equal accuracy tie, so their energy is not determined to the last query.
    assert point.totals.energy_j == pytest.approx(energy_j, rel=1e-4 if zeta == 0 else 1e-9)
    assert point.totals.accuracy == pytest.approx(accuracy, abs=1e-7)
