"""From trials to means: figures that can be worked out by hand."""

from __future__ import annotations

import msgspec
import pytest

from pytest_llmenergy import student_t
from pytest_llmenergy.campaign.summary import summarise
from pytest_llmenergy.records import Trial
from tests.doubles.windows import gpu

ENERGIES_J = (100.0, 104.0, 96.0)


def trial(index: int, energy_j: float, bound_j: float = 0.0, runtime_s: float = 2.0) -> Trial:
    return Trial(index=index, runtime_s=runtime_s, domains=(gpu(energy_j, bound_j),), meter_cpu_s=0.02)


def test_the_meters_bound_is_that_of_the_worst_trial() -> None:
    """1 %, 5 % and 2 %."""
    trials = [trial(0, 100, 1), trial(1, 100, 5), trial(2, 100, 2)]
    assert summarise(trials, tokens_generated=10).bound_rel == pytest.approx(0.05)


def test_a_bound_that_one_trial_lacks_is_unknown() -> None:
    """The worst of the others would not hold for it."""
    trials = [trial(0, 100, 1), trial(1, 100)]
    bare = msgspec.structs.replace(trials[1].domains[0], bound_j=None)
    trials[1] = msgspec.structs.replace(trials[1], domains=(bare,))
    assert summarise(trials, tokens_generated=10).bound_rel is None


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_is_of_the_confidence_that_was_asked_for(confidence: float) -> None:
    """Sd 4 J over three trials and 10 tokens."""
    summary = summarise(
        [trial(i, energy_j) for i, energy_j in enumerate(ENERGIES_J)],
        tokens_generated=10,
        confidence=confidence,
    )
    by_hand_j = student_t.quantile(confidence, 2) * 4 / 3**0.5
    assert summary.energy_j_per_token_half_width == pytest.approx(by_hand_j / 10)


def test_throughput_power_and_the_meters_share_are_over_the_mean_runtime() -> None:
    """10 tokens and 100 J in 2 s; 0.02 s of CPU time in each trial of 2 s."""
    summary = summarise([trial(i, energy_j) for i, energy_j in enumerate(ENERGIES_J)], tokens_generated=10)
    assert summary.runtime_s == pytest.approx(2)
    assert summary.throughput_tok_s == pytest.approx(5)
    assert summary.power_w == pytest.approx(50)
    assert summary.energy_j_per_token == pytest.approx(10)
    assert summary.meter_cpu_share == pytest.approx(0.01)
