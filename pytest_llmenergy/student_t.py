"""Student's t for whole degrees of freedom, exactly, so that the core needs no scipy.

Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: for whole degrees of freedom
the distribution is a finite sum.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def central_probability(t: float, degrees_of_freedom: int) -> float:
    """P(|T| <= t)."""
    theta = math.atan2(t, math.sqrt(degrees_of_freedom))
    cos_sq = math.cos(theta) ** 2
    odd = degrees_of_freedom % 2
    term = math.cos(theta) if odd else 1.0
    series = 0.0 if degrees_of_freedom == 1 else term
    for k in range(2 + odd, degrees_of_freedom, 2):
        term *= cos_sq * (k - 1) / k
        series += term
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * series)
    return math.sin(theta) * series


@cache
def quantile(confidence: float, degrees_of_freedom: int) -> float:
    """The t with P(|T| <= t) = confidence (two-sided), by bisection.

    Raises:
        ValueError: confidence is not inside (0, 1), or there is no degree of freedom.
    """
    if not 0 < confidence < 1 or degrees_of_freedom < 1:
        raise ValueError(f"no t for confidence {confidence} and {degrees_of_freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while central_probability(high, degrees_of_freedom) < confidence:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if central_probability(middle, degrees_of_freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def half_width(values: Sequence[float], confidence: float) -> float | None:
    """Half the width of the mean's two-sided interval; None below two values."""
    n = len(values)
    if n < 2:  # noqa: PLR2004 - a spread needs two
        return None
    centre = math.fsum(values) / n
    variance = math.fsum([(value - centre) ** 2 for value in values]) / (n - 1)
    return quantile(confidence, n - 1) * math.sqrt(variance / n)
