"""The gate's arithmetic, beside independent implementations and simulated truths."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from pytest_llmenergy.analysis.gate import evidence as gate
from pytest_llmenergy.analysis.gate.evidence import Evidence, holm, of_mean, prior, welch
from pytest_llmenergy.analysis.gate.readings import Reading, Session
from pytest_llmenergy.analysis.gate.routes import CellEvidence, Route, spreads
from pytest_llmenergy.analysis.gate.sessions import assumed_spread_evidence
from pytest_llmenergy.records import Campaign
from tests.doubles.noisy_machine import cells


@pytest.mark.parametrize("df", [1, 6, 9, 40])
@pytest.mark.parametrize("t", [-2.0, 0.5, 3.1, 7.0])
def test_p_is_student_s(t, df):
    """The p value is scipy's one-sided one."""
    assert Evidence(estimate=t * 0.01, se=0.01, df=df).p == pytest.approx(stats.t.sf(t, df), rel=1e-7)


def test_an_assumed_error_is_normal():
    """Where the spread is assumed there are no degrees of freedom to pay for."""
    evidence = Evidence(estimate=0.03, se=0.01, df=None)
    assert evidence.p == pytest.approx(stats.norm.sf(3), rel=1e-9)
    assert evidence.upper(0.01) == pytest.approx(0.03 + 0.01 * stats.norm.ppf(0.99))


def test_bounds_are_one_sided():
    """A bound at 1 % is exceeded by the truth in 1 of 100 runs, on its side."""
    draw = random.Random(1)
    low = high = 0
    for _ in range(4000):
        found = of_mean([draw.gauss(0.02, 0.01) for _ in range(7)])
        low += found.lower(0.01) > 0.02
        high += found.upper(0.01) < 0.02
    assert 20 <= low <= 62
    assert 20 <= high <= 62


def test_no_spread_means_certainty():
    """Changes that agree to the last digit are certain, and none is none."""
    assert of_mean([0.05, 0.05]).p == 0.0
    assert of_mean([0.0, 0.0]).p == 1.0
    assert of_mean([0.05]) is None


@pytest.mark.parametrize("alpha", [0.005, 0.05, 0.3])
def test_holm_is_holm(alpha):
    """The rejected are those of statsmodels."""
    draw = random.Random(3)
    p = {k: draw.random() ** 4 for k in range(30)}
    expected = multipletests(list(p.values()), alpha=alpha, method="holm")[0]
    assert holm(p, alpha) == {k for k, rejected in enumerate(expected) if rejected}


def test_satterthwaite():
    """Two equal variances have both their degrees of freedom; an assumed one adds none and takes none."""
    found = welch(0.0, [(1e-4, 4), (1e-4, 4)], 0.0)
    assert (found.df, found.se) == (8, pytest.approx(math.sqrt(2e-4)))
    assert welch(0.0, [(1e-4, 4)], 3e-4).df == 64
    assert welch(0.0, [], 3e-4).df is None


@pytest.mark.parametrize("n", [1, 2, 3, 8, 15, 200])
def test_polygamma_of_halves(n):
    """The recurrences give scipy's psi and psi'."""
    assert gate._digamma_half(n) == pytest.approx(special.digamma(n / 2), rel=1e-12)
    assert gate._trigamma_half(n) == pytest.approx(special.polygamma(1, n / 2), rel=1e-12)


def test_equal_noise_is_pooled():
    """Eighty cells of one noise: each borrows the others' degrees of freedom, and the truth is met."""
    draw = random.Random(5)
    variances = [(gate.variance([draw.gauss(0, 0.01) for _ in range(7)]), 6) for _ in range(80)]
    found = prior(variances)
    assert found.df > 15
    assert math.sqrt(found.variance) == pytest.approx(0.01, rel=0.05)


def test_unequal_noise_is_not_pooled():
    """Where noise differs tenfold from cell to cell, little is borrowed."""
    draw = random.Random(6)
    variances = [
        (gate.variance([draw.gauss(0, 0.001 * 10 ** draw.uniform(0, 2)) for _ in range(7)]), 6)
        for _ in range(80)
    ]
    assert prior(variances).df <= 4


def test_two_cells_say_nothing_of_each_other():
    """Below three cells every cell stands on its own."""
    assert prior([(1e-4, 6), (2e-4, 6)]).df == 0
    assert prior([(1e-4, 6), (2e-4, 6)]).shrink(1e-4, 6) == (1e-4, 6)


@pytest.mark.parametrize(("blocks", "noise"), [(7, 0.01), (10, 0.02), (6, 0.004)])
def test_the_smallest_effect_is_seen_nine_times_in_ten(blocks, noise):
    """An increase as large as the smallest effect that runs print is seen in at least nine of ten others."""
    draw = random.Random(7)

    def run():
        return [draw.gauss(0, noise) for _ in range(blocks)]

    effect = statistics.median(of_mean(run()).smallest_effect(0.01, 0.01) for _ in range(999))
    seen = 0
    for _ in range(2000):
        found = of_mean([d + math.log1p(effect) for d in run()])
        seen += found.lower(0.01) > 0 and math.expm1(found.estimate) >= 0.01
    assert 0.89 <= seen / 2000 <= 0.985


def test_a_hopeless_measurement_has_no_smallest_effect():
    """Two blocks and a tiny error rate see nothing: infinite, and no overflow."""
    found = Evidence(estimate=0.0, se=0.5, df=1)
    assert found.smallest_effect(1e-6, 0.01) == math.inf


def test_what_shifts_all_cells_is_known_as_often_as_there_are_blocks():
    """Eighty cells that share a shift of 2 % a block are no eighty observations of it."""
    draw = random.Random(9)
    shift = [draw.gauss(0, 0.02) for _ in range(10)]
    changes = {cell: {k: shift[k] + draw.gauss(0, 0.002) for k in range(10)} for cell in cells(80)}
    found = spreads(changes, 10)[cells(1)[0]].evidence()
    of_shift = of_mean(shift)
    assert found.absolute.shared.se == pytest.approx(of_shift.se, rel=0.05)
    assert found.absolute.shared.df <= 10
    assert found.relative.shared.se == pytest.approx(0.002 / math.sqrt(10), rel=0.15)
    assert found.relative.shared.df > 40


def test_a_noisy_cell_does_not_fail_on_the_others_account():
    """What the other cells make certain, the cell's own spread may still leave open."""
    sure = Evidence(estimate=0.05, se=0.008, df=100)
    unsure = Evidence(estimate=0.05, se=0.03, df=6)
    assert CellEvidence(absolute=Route(own=sure, shared=sure)).p(0.01, 0.03) < 1e-6
    assert CellEvidence(absolute=Route(own=unsure, shared=sure)).p(0.01, 0.03) == 1.0
    assert Route(own=unsure, shared=sure).upper(0.01) == unsure.upper(0.01)


def test_a_second_way_to_fail_costs_half_the_error():
    """By itself and beside the rest: the smaller of two p values counts double."""
    found = Evidence(estimate=0.05, se=0.02, df=None)
    route = Route(own=found, shared=found)
    alone = CellEvidence(absolute=route)
    assert alone.p(0.01, 0.03) == found.p
    assert CellEvidence(absolute=route, relative=route).p(0.01, 0.03) == 2 * found.p


def test_heads_whose_trials_stray_more_than_sessions_do_say_less():
    """A few spiked trials: the head's own spread takes the place of what stored sessions show."""
    (cell,) = cells(1)
    draw = random.Random(3)
    changes = {cell: {k: draw.gauss(0, 0.01) for k in range(10)}}
    spread = spreads(changes, 10)[cell]
    of_sessions = statistics.variance(changes[cell].values())
    quiet = spread.evidence(heads=1, trials_own=(1e-9, 4), trials_shared=(1e-9, 4)).absolute
    assert quiet.own.se**2 == pytest.approx(of_sessions * (1 / 10 + 1))
    spiked = spread.evidence(heads=1, trials_own=(0.03**2, 4), trials_shared=(0.03**2, 4)).absolute
    assert spiked.own.se**2 == pytest.approx(of_sessions / 10 + 0.03**2)
    assert spiked.own.df < quiet.own.df


def session_of(readings):
    return Session(
        name="made up",
        campaign=Campaign(cells=()),
        readings={cell: Reading(logs=tuple(logs)) for cell, logs in readings.items()},
    )


def test_a_session_is_as_sure_as_its_trials_and_several_are_surer():
    """The mean of B sessions of n trials of variance v has v / (B n), and of the assumed spread s^2 / B."""
    cell = cells(1)[0]
    logs = [-0.02, 0.0, 0.02]  # of variance 0.0004
    for bases, heads in ((1, 1), (2, 1), (2, 4)):
        found = assumed_spread_evidence(
            [session_of({cell: logs})] * bases, [session_of({cell: logs})] * heads, 0.01
        )
        expected = (0.0004 / 3 + 0.01**2) * (1 / bases + 1 / heads)
        assert found.cells[cell].absolute.own.se ** 2 == pytest.approx(expected)


def test_a_cell_that_rose_in_a_small_grid_does_not_hide_itself():
    """How far cells stray is seen in the others: here not at all, and for the others a lot."""
    three = cells(3)
    exact, rose = [0.0, 0.0], [0.3, 0.3]
    base = session_of(dict.fromkeys(three, exact))
    head = session_of({three[0]: rose, three[1]: exact, three[2]: exact})
    found = assumed_spread_evidence([base], [head], 0.01)
    assert found.cells[three[0]].absolute.own.se == pytest.approx(0.01 * 2**0.5)
    assert found.cells[three[1]].absolute.own.se > 0.2
