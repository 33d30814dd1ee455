"""What is known of one change, and the few tests the gate is made of; pure arithmetic, standard library only.

A change is d = log(J per token, head) - log(J per token, base): +5 % is log 1.05. Everything is one-sided:
the gate looks for increases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeVar

from pytest_llmenergy import student_t

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

K = TypeVar("K")

# Student's t for more degrees of freedom is taken at this many: wider by under 2 %, and quick.
MAX_DF = 200
# One in ten may be missed; less than half of that is left to the estimate, for the error that sets the
# critical value is itself estimated.
_MISSED = 0.04
_ANYTHING = 5.0  # a bound beyond e^5, 150-fold, bounds nothing
SHRINK_MIN_CELLS = 3  # fewer say nothing of how noise varies over cells


def as_change(d: float) -> float:
    """A log ratio as a relative change; infinite where nothing at all is known."""
    return math.expm1(d) if d < _ANYTHING else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """An estimate of d with its standard error; `df` is None where the error is assumed, not estimated."""

    estimate: float
    se: float
    df: int | None

    def quantile(self, alpha: float) -> float:
        """The t that is exceeded with probability alpha (one-sided)."""
        if self.df is None:
            return NormalDist().inv_cdf(1 - alpha)
        return student_t.quantile(1 - 2 * alpha, min(self.df, MAX_DF))

    def lower(self, alpha: float) -> float:
        """The one-sided lower bound with confidence 1 - alpha."""
        return self.estimate - self.quantile(alpha) * self.se

    def upper(self, alpha: float) -> float:
        """The one-sided upper bound with confidence 1 - alpha."""
        return self.estimate + self.quantile(alpha) * self.se

    @property
    def p(self) -> float:
        """The chance of an estimate as large when nothing has changed."""
        if self.se == 0:
            return 0.0 if self.estimate > 0 else 1.0
        t = self.estimate / self.se
        if self.df is None:
            return 0.5 * math.erfc(t / math.sqrt(2))
        central = student_t.central_probability(abs(t), min(self.df, MAX_DF))
        return (1 - central) / 2 if t > 0 else (1 + central) / 2

    def smallest_effect(self, alpha: float, fail_from: float) -> float:
        """The relative increase that such a measurement fails nine times in ten.

        The test asks for an estimate above both its critical value and `fail_from`.
        """
        return self.smallest_effect_beyond(self.quantile(alpha) * self.se, fail_from)

    def smallest_effect_beyond(self, critical: float, fail_from: float) -> float:
        """The same for a critical value of d that is known."""
        least = max(critical, math.log1p(fail_from))
        return as_change(least + self.quantile(_MISSED) * self.se)


def of_mean(values: Sequence[float]) -> Evidence | None:
    """The mean of independent changes (one a block); None below two."""
    n = len(values)
    if n < 2:  # noqa: PLR2004 - a spread needs two
        return None
    return Evidence(estimate=math.fsum(values) / n, se=math.sqrt(variance(values) / n), df=n - 1)


def variance(values: Sequence[float]) -> float:
    """The sample variance, n - 1 below; of one value 0."""
    n = len(values)
    centre = math.fsum(values) / n
    return math.fsum((value - centre) ** 2 for value in values) / max(1, n - 1)


def welch(estimate: float, estimated: Sequence[tuple[float, int]], assumed: float) -> Evidence:
    """Add variances, estimated ones with their degrees of freedom (Satterthwaite 1946) and an assumed one."""
    total = assumed + math.fsum(part for part, _ in estimated)
    spread = math.fsum(part**2 / df for part, df in estimated if part > 0)
    df = None if spread == 0 else max(1, min(MAX_DF, int(total**2 / spread + 1e-9)))
    return Evidence(estimate=estimate, se=math.sqrt(total), df=df)


def holm(p_values: Mapping[K, float], alpha: float) -> set[K]:
    """The hypotheses rejected with a family-wise error of alpha (Holm 1979)."""
    rejected: set[K] = set()
    ordered = sorted(p_values, key=lambda key: p_values[key])
    for rank, key in enumerate(ordered):
        if p_values[key] > alpha / (len(ordered) - rank):
            break
        rejected.add(key)
    return rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """How variances are spread over cells: as `df` degrees of freedom around `variance`."""

    variance: float
    df: int

    def shrink(self, own: float, df: int) -> tuple[float, int]:
        """A cell's variance drawn towards the others', and its degrees of freedom."""
        if self.df + df == 0:
            return 0.0, 0
        return (self.df * self.variance + df * own) / (self.df + df), min(MAX_DF, self.df + df)


def prior(variances: Sequence[tuple[float, int]]) -> Prior:
    """Fit the spread of variances over cells, each with its degrees of freedom, by moments.

    Smyth, Linear models and empirical Bayes methods for assessing differential expression (2004), section
    6.2. Seven blocks say little of one cell's noise; eighty cells of one machine say much of each other's.
    The fitted degrees of freedom are rounded down, which shrinks less.
    """
    known = [(own, df) for own, df in variances if df > 0]
    floor = 1e-5 * sorted(own for own, _ in known)[len(known) // 2] if known else 0.0
    if len(known) < SHRINK_MIN_CELLS or floor <= 0:
        return Prior(variance=0.0, df=0)
    logs = [math.log(max(own, floor)) - _digamma_half(df) + math.log(df / 2) for own, df in known]
    excess = variance(logs) - math.fsum(_trigamma_half(df) for _, df in known) / len(known)
    total_df = min(MAX_DF, sum(df for _, df in known))
    prior_df = next((df for df in range(total_df, 0, -1) if _trigamma_half(df) >= excess), 0)
    if prior_df == 0:
        return Prior(variance=0.0, df=0)
    if prior_df == total_df:  # no cell is noisier than another, as far as can be seen: pool
        pooled = math.fsum(own * df for own, df in known) / sum(df for _, df in known)
        return Prior(variance=pooled, df=prior_df)
    centre = math.fsum(logs) / len(logs)
    return Prior(variance=math.exp(centre + _digamma_half(prior_df) - math.log(prior_df / 2)), df=prior_df)


_EULER = 0.5772156649015329


@cache
def _digamma_half(n: int) -> float:
    """psi(n / 2) for a whole n, by its recurrence (Abramowitz and Stegun 6.3.2 to 6.3.5)."""
    if n % 2:
        return -_EULER - 2 * math.log(2) + math.fsum(2 / k for k in range(1, n - 1, 2))
    return -_EULER + math.fsum(2 / k for k in range(2, n, 2))


@cache
def _trigamma_half(n: int) -> float:
    """psi'(n / 2) for a whole n (Abramowitz and Stegun 6.4.3 and 6.4.4)."""
    if n % 2:
        return math.pi**2 / 2 - math.fsum(4 / k**2 for k in range(1, n - 1, 2))
    return math.pi**2 / 6 - math.fsum(4 / k**2 for k in range(2, n, 2))
