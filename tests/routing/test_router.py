"""Plan documents, and routing by their prices."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pytest_llmenergy.campaign.results import write_json
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.routing.frontier import plan_at, sweep
from pytest_llmenergy.routing.held_out import hold_out
from pytest_llmenergy.routing.lengths import learn_lengths
from pytest_llmenergy.routing.plan import plan_document, read_plan
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.router import Router

NAMES = ("small", "medium", "large")


@pytest.fixture
def shared(hosts, workload):
    bounds = share_bounds(NAMES, workload.queries, exact={"small": 0.2, "medium": 0.3, "large": 0.5})
    return make_problem(hosts, workload, bounds)


@pytest.mark.parametrize("zeta", [0.05, 0.2, 0.7])
def test_a_router_sends_the_workload_where_the_plan_does(problem, tmp_path, zeta):
    """Through a file, without the fits: all queries but those on ties."""
    point = plan_at(problem, zeta)
    write_json(tmp_path / "plan.json", plan_document(problem, [point]))
    router = Router.from_plan(tmp_path / "plan.json")
    workload = problem.workload
    wrong = sum(
        point.solution.flow[NAMES.index(router.route(int(t), int(n))), c] == 0
        for c, (t, n) in enumerate(zip(workload.tokens_in, workload.tokens_out, strict=True))
    )
    assert wrong <= 3


def test_shares_hold_for_the_queries_that_come(shared, tmp_path):
    """Short queries alone would all go one way; the prices lean until the shares are back."""
    write_json(tmp_path / "plan.json", plan_document(shared, [plan_at(shared, 0.5)]))
    router = Router.from_plan(str(tmp_path / "plan.json"))
    rng = np.random.default_rng(5)
    sent = Counter(router.route(int(rng.integers(1, 60)), int(rng.geometric(0.02))) for _ in range(2_000))
    assert sent["small"] == pytest.approx(400, abs=20)
    assert sent["large"] == pytest.approx(1_000, abs=20)


def test_one_of_several_points_is_named(problem):
    """A plan of a sweep has many policies."""
    document = plan_document(problem, sweep(problem, [0.1, 0.9]))
    assert Router.from_plan(document, zeta=0.9).route(5, 5) in NAMES
    with pytest.raises(RequestError, match=r"say which zeta: 0\.1, 0\.9"):
        Router.from_plan(document)
    with pytest.raises(RequestError, match=r"no point at zeta 0\.5"):
        Router.from_plan(document, zeta=0.5)


def test_unknown_lengths_are_expected(problem):
    """Without tokens_out the expected cost over the lengths that were seen decides."""
    document = plan_document(problem, [plan_at(problem, 0.3)])
    with pytest.raises(RequestError, match="tokens_out is not known"):
        Router.from_plan(document).route(5)
    lengths = learn_lengths(problem.workload, least_queries=50)
    router = Router.from_plan(document, lengths=lengths)
    outs, chances = lengths.given(5)
    mean = (router.costs(np.full(len(outs), 5), outs) @ chances) - [
        document["points"][0]["prices"][n] for n in NAMES
    ]
    assert router.route(5) == NAMES[int(mean.argmin())]


def test_expected_costs_are_weighed_by_how_likely_a_length_is(problem):
    """A price is worth as much as it would be against a known length's cost."""
    document = plan_document(problem, [plan_at(problem, 0.3)])
    point = document["points"][0]
    point["bound_shares"] = dict.fromkeys(NAMES, None)
    lengths = learn_lengths(problem.workload, least_queries=50)
    outs, chances = lengths.given(5)
    mean = Router.from_plan(document).costs(np.full(len(outs), 5), outs) @ chances
    cheapest, dearest = int(mean.argmin()), int(mean.argmax())
    point["prices"] = dict.fromkeys(NAMES, 0.0)
    for factor, expected in ((0.9, cheapest), (1.1, dearest)):
        point["prices"][NAMES[dearest]] = factor * float(mean[dearest] - mean[cheapest])
        assert Router.from_plan(document, lengths=lengths).route(5) == NAMES[expected]


def test_bounds_hold_in_the_half_held_out(hosts, workload):
    """A largest share of the workload is as large a share of its half, and the half is the other one."""
    bounds = share_bounds(NAMES, workload.queries, most={"large": 0.3})
    result = hold_out(make_problem(hosts, workload, bounds), 0.02, seed=1)
    assert result.optimum.counts[2] == 45
    assert result.routed.counts[2] == pytest.approx(45, abs=3)
    more = replace(workload, counts=workload.counts + (np.arange(len(workload.counts)) == 0))
    odd = make_problem(hosts, more, share_bounds(NAMES, more.queries))
    assert hold_out(odd, 0.3, seed=1).queries == more.queries - more.queries // 2 == 151


def test_negative_tokens_are_refused(problem):
    """As in a workload."""
    router = Router.from_plan(plan_document(problem, [plan_at(problem, 0.3)]))
    with pytest.raises(RequestError, match="start at 0"):
        router.route(-1, 5)


def test_a_plan_without_prices_is_no_policy(problem):
    """Capacities that weigh queries differently have no price a model."""
    point = plan_at(problem, 0.3)
    nameless = replace(point, solution=replace(point.solution, prices=np.full(3, np.nan)))
    document = json.loads(json.dumps(plan_document(problem, [nameless]), allow_nan=False))
    assert document["points"][0]["prices"] is None
    with pytest.raises(RequestError, match="no prices"):
        Router.from_plan(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a plan"),
        ('{"schema": "x"}', "has schema"),
        ('{"schema": "llmenergy.plan/1"}', "no points"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, text, words):
    """With the file's name."""
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(DocumentError, match=words):
        read_plan(path)


def test_the_held_out_half_comes_within_a_percent(alpaca):
    """The issue's measure, on exact shares and on several trade-offs."""
    for zeta in (0.0, 0.1, 0.3, 0.5, 1.0):
        result = hold_out(alpaca, zeta, seed=3)
        assert result.queries == 26_001
        assert abs(result.energy_change) < 0.01
        assert abs(result.accuracy_change) < 0.01


def test_prices_of_another_workload_do_not_come_within_a_percent(alpaca):
    """A control: the policy is not right whatever its prices."""
    point = plan_at(alpaca, 0.3)
    document = plan_document(alpaca, [point])
    document["points"][0]["prices"] = dict.fromkeys(alpaca.models, 0.0)
    document["points"][0]["bound_shares"] = dict.fromkeys(alpaca.models, None)
    router = Router.from_plan(document)
    costs = router.costs(alpaca.workload.tokens_in, alpaca.workload.tokens_out)
    flow = np.zeros(costs.shape, np.int64)
    flow[router.place(costs), np.arange(costs.shape[1])] = alpaca.workload.counts
    assert abs(alpaca.totals(flow).energy_j / point.totals.energy_j - 1) > 0.1


def test_two_queries_cannot_be_held_out(hosts):
    """There is no half of them."""
    from pytest_llmenergy.routing.workload import workload_of

    queries = workload_of([1, 2, 3], [1, 2, 3])
    problem = make_problem(hosts, queries, share_bounds(NAMES, 3))
    with pytest.raises(RequestError, match="too small"):
        hold_out(problem, 0.5, seed=0)
