"""Student's t without scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy import student_t


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 4, 5, 24, 25, 100])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_quantiles_equal_scipys(confidence: float, degrees_of_freedom: int) -> None:
    """The finite sums give the same t as scipy."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
    expected = stats.t.ppf((1 + confidence) / 2, degrees_of_freedom)
    assert student_t.quantile(confidence, degrees_of_freedom) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("confidence", "degrees_of_freedom"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_a_quantile_that_does_not_exist_is_refused(confidence: float, degrees_of_freedom: int) -> None:
    """No t has probability 1, and one value has no spread."""
    with pytest.raises(ValueError, match="no t for confidence"):
        student_t.quantile(confidence, degrees_of_freedom)


def test_one_value_has_no_interval() -> None:
    """A single trial says nothing of its spread."""
    assert student_t.half_width([1.0], 0.95) is None
    assert student_t.mean([]) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.floats(-1e3, 1e3))
def test_the_half_width_does_not_move_with_the_values(values: list[float], shift: float) -> None:
    """Adding a constant to every value leaves the spread alone."""
    before = student_t.half_width(values, 0.95)
    after = student_t.half_width([value + shift for value in values], 0.95)
    assert after == pytest.approx(before, rel=1e-6, abs=1e-6)
