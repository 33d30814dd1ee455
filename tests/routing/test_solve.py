"""The price solver against PuLP, to the last digit that floats have."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing import exchange, pulp_solver
from pytest_llmenergy.routing.solve import InfeasibleError, exact_dot, solve


@st.composite
def instances(draw):
    """Costs with many ties or none, counts of 1 to 5, and counts a model that are exact, bounded or free."""
    models = draw(st.integers(1, 5))
    classes = draw(st.integers(1, 12))
    cost = draw(
        st.sampled_from(
            [
                st.integers(-2, 2).map(float),  # ties everywhere
                st.floats(-1, 1, allow_subnormal=False).map(lambda x: round(x, 6)),
                st.sampled_from([0.1, 0.2, 0.3]),  # sums of these are no exact floats
            ]
        )
    )
    costs = np.array(draw(st.lists(cost, min_size=models * classes, max_size=models * classes)))
    counts = np.array(draw(st.lists(st.integers(1, 5), min_size=classes, max_size=classes)))
    queries = int(counts.sum())
    cuts = sorted(draw(st.lists(st.integers(0, queries), min_size=models - 1, max_size=models - 1)))
    exact = np.diff([0, *cuts, queries])  # zeros among them: degenerate shares
    slack = draw(st.sampled_from([0, 0, 2, queries]))
    return costs.reshape(models, classes), counts, np.maximum(0, exact - slack), exact + slack


def by_pulp(costs, counts, lower, upper):
    """The optimum of the whole-number program."""
    pulp = pulp_solver.pulp()
    program = pulp.LpProblem("reference", pulp.LpMinimize)
    models, classes = range(len(costs)), range(len(counts))
    x = program.add_variable_dicts("x", (models, classes), lowBound=0, cat=pulp.LpInteger)
    program += pulp.lpSum(float(costs[k, c]) * x[k][c] for k in models for c in classes)
    for c in classes:
        program += pulp.lpSum(x[k][c] for k in models) == int(counts[c])
    for k in models:
        served = pulp.lpSum(x[k][c] for c in classes)
        program += served >= int(lower[k])
        program += served <= int(upper[k])
    assert pulp_solver.solve(program, pulp_solver.open_solver("highs")) == "optimal"
    return pulp.value(program.objective)


def check(solution, costs, counts, lower, upper):
    assert (solution.flow >= 0).all()
    assert (solution.flow.sum(axis=0) == counts).all()
    assert (solution.counts >= lower).all()
    assert (solution.counts <= upper).all()
    # The certificate, computed anew from the prices alone and in floats.
    prices = solution.prices
    bound = (costs - prices[:, None]).min(axis=0) @ counts + prices @ np.where(prices > 0, lower, upper)
    assert bound == pytest.approx(np.vdot(costs, solution.flow), rel=1e-9, abs=1e-9)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances())
def test_prices_and_pulp_agree(instance):
    """On ties, degenerate shares and bounds the objective is PuLP's and the gap is exactly 0."""
    costs, counts, lower, upper = instance
    solution = solve(costs, counts, lower, upper)
    check(solution, costs, counts, lower, upper)
    assert solution.gap == 0
    assert solution.objective == pytest.approx(by_pulp(costs, counts, lower, upper), abs=1e-6)


@pytest.mark.parametrize("models", [2, 3, 7, 20])
@pytest.mark.parametrize("kind", ["exact", "bounds", "free"])
def test_thousands_of_classes_are_certified(models, kind):
    """With enough classes for sampling and cooling the gap is still exactly 0."""
    rng = np.random.default_rng(models)
    classes = 9_000
    costs = rng.normal(size=(models, classes)) * np.sort(rng.exponential(size=classes))
    counts = rng.integers(1, 6, classes)
    share = np.floor(rng.dirichlet(np.ones(models)) * counts.sum()).astype(int)
    share[0] += counts.sum() - share.sum()
    lower, upper = {
        "exact": (share, share),
        "bounds": (share // 2, share * 2),
        "free": (np.ones(models, int), np.full(models, counts.sum() - 1)),
    }[kind]
    solution = solve(costs, counts, lower, upper)
    check(solution, costs, counts, lower, upper)
    assert solution.gap == 0


def test_equal_classes_everywhere_are_certified():
    """Where every class ties the cooling never settles, and the exchange does."""
    costs = np.tile(np.array([[1.0], [2.0], [3.0]]), (1, 5_000))
    counts = np.full(5_000, 3)
    lower = upper = np.array([1_000, 10_000, 4_000])
    solution = solve(costs, counts, lower, upper)
    assert solution.gap == 0
    assert solution.objective == 1_000 + 20_000 + 12_000


def test_prices_of_a_neighbour_change_nothing_but_the_time():
    """A start from any prices, however wrong, ends at the same optimum."""
    rng = np.random.default_rng(3)
    costs, counts = rng.normal(size=(4, 2_000)), rng.integers(1, 4, 2_000)
    bounds = np.full(4, counts.sum() // 4)
    bounds[0] += counts.sum() - bounds.sum()
    cold = solve(costs, counts, bounds, bounds)
    for start in (cold.prices, cold.prices + 0.1, np.array([5.0, -5.0, 0.0, 1e-9])):
        warm = solve(costs, counts, bounds, bounds, prices=start)
        assert warm.objective == cold.objective
        assert warm.gap == 0


def test_forbidden_pairs_are_not_used():
    """An infinite cost keeps a class away however cheap its neighbours are."""
    costs = np.array([[np.inf, 0.0, 0.0], [5.0, 5.0, np.inf]])
    solution = solve(costs, np.array([2, 2, 2]), np.array([1, 1]), np.array([5, 5]))
    assert solution.flow.tolist() == [[0, 2, 2], [2, 0, 0]]
    assert solution.gap == 0


def test_what_only_forbidden_pairs_could_meet_is_infeasible():
    """A model that may serve one query cannot be given two."""
    costs = np.array([[np.inf, 0.0], [5.0, 5.0]])
    with pytest.raises(InfeasibleError):
        solve(costs, np.array([3, 1]), np.array([2, 0]), np.array([4, 4]))


@pytest.mark.parametrize(
    ("lower", "upper", "words"),
    [((3, 3), (5, 5), "least"), ((0, 0), (2, 2), "largest"), ((3, 0), (2, 5), "at least 3 and at most 2")],
)
def test_bounds_that_cannot_hold_are_refused(lower, upper, words):
    """The message says which side is wrong."""
    with pytest.raises(InfeasibleError, match=words):
        solve(np.zeros((2, 1)), np.array([5]), np.array(lower), np.array(upper))


def test_a_cost_that_is_not_a_number_is_refused():
    """NaN never becomes an integer."""
    with pytest.raises(RequestError, match="not a number"):
        solve(np.array([[np.nan]]), np.array([1]), np.array([0]), np.array([1]))


def test_exact_sums_do_not_overflow():
    """A hundred million queries of the largest cost add up exactly."""
    costs, counts = np.array([(1 << 60) - 1, -(1 << 60)]), np.array([100_000_000, 99_999_999])
    assert exact_dot(costs, counts) == ((1 << 60) - 1) * 100_000_000 - (1 << 60) * 99_999_999


@pytest.mark.parametrize("slack", [0, 1_000])
def test_two_equal_models_are_told_apart_by_their_counts_alone(slack):
    """The same model twice ties for every class; the third still has its price."""
    energy = np.random.default_rng(0).exponential(size=20_000)
    costs, counts = np.stack([energy, energy, 2 * energy]), np.full(20_000, 2)
    share = np.array([8_000, 8_000, 24_000])
    solution = solve(costs, counts, share - slack, share + slack)
    check(solution, costs, counts, share - slack, share + slack)
    assert solution.gap == 0


@pytest.mark.parametrize("start", [(0.3, 0.0, 0.0), (0.0, -0.4, 0.2), (1e-7, 0.0, 0.0)])
def test_a_neighbours_price_that_binds_no_longer_is_let_go(start, monkeypatch):
    """Counts within their bounds do not make a price right; the exchange is left with a few classes only."""
    moves = []
    augment = exchange._Network.augment
    monkeypatch.setattr(exchange._Network, "augment", lambda self: moves.append(1) or augment(self))
    costs = np.random.default_rng(4).normal(size=(3, 9_000))
    counts = np.full(9_000, 2)
    lower, upper = np.array([1, 1, 1]), np.full(3, 17_999)
    solution = solve(costs, counts, lower, upper, prices=np.array(start))
    check(solution, costs, counts, lower, upper)
    assert solution.gap == 0
    assert len(moves) < 50
