"""When a cell has been measured often enough (section 5.1.3 of the paper, with Student's t).

Intervals after optional stopping cover a little less than they say: 92 to 95 % for a stated 95 %.
docs/stopping-rule.md has the simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy import student_t
from pytest_llmenergy.records import Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TRIALS = "max-trials"
MIN_TRIALS = "min-trials"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """Stop when every rule that is switched on holds, from `min_trials` on, or at `max_trials`.

    Args:
        ci_abs_s: half-width of the mean runtime's interval, in s; None switches the rule off.
        ci_rel: half-width of the mean energy's interval over the mean; None switches the rule off.
        confidence: of both intervals, two-sided.
        min_trials: at least 2.
        max_trials: at least `min_trials`.
    """

    ci_abs_s: float | None = 0.5
    ci_rel: float | None = 0.01
    confidence: float = 0.95
    min_trials: int = 5
    max_trials: int = 25

    def held(self, runtimes_s: Sequence[float], energies_j: Sequence[float | None]) -> dict[str, bool]:
        """Which of the rules that are switched on hold; the energy rule is off where energy is unknown."""
        rules = {}
        if self.ci_abs_s is not None:
            half_width_s = student_t.half_width(runtimes_s, self.confidence)
            rules["runtime"] = half_width_s is not None and half_width_s <= self.ci_abs_s
        known = [energy_j for energy_j in energies_j if energy_j is not None]
        if self.ci_rel is not None and known and len(known) == len(energies_j):
            half_width_rel = relative_half_width(known, self.confidence)
            rules["energy"] = half_width_rel is not None and half_width_rel <= self.ci_rel
        return rules

    def decide(self, runtimes_s: Sequence[float], energies_j: Sequence[float | None]) -> Stop | None:
        """None to go on; else why to stop: the rules that came to hold last, or the cap.

        Args:
            runtimes_s: the counted trials' runtimes in s, shape (n,).
            energies_j: their energies in J, shape (n,), None where unknown.
        """
        n = len(runtimes_s)
        if n < self.min_trials:
            return None
        now = self.held(runtimes_s, energies_j)
        if all(now.values()):
            reason = self._last_to_hold(now, runtimes_s, energies_j)
        elif n >= self.max_trials:
            reason = MAX_TRIALS
        else:
            return None
        return describe(reason, runtimes_s, energies_j, self.confidence)

    def _last_to_hold(
        self, now: dict[str, bool], runtimes_s: Sequence[float], energies_j: Sequence[float | None]
    ) -> str:
        if not now:
            return MIN_TRIALS
        if len(runtimes_s) == self.min_trials:
            return "+".join(now)  # both hold as soon as they are asked
        before = self.held(runtimes_s[:-1], energies_j[:-1])
        return "+".join(name for name in now if not before.get(name)) or "+".join(now)


def relative_half_width(values: Sequence[float], confidence: float) -> float | None:
    """Half-width of the mean's interval over the mean; None where it has none."""
    half_width, mean = student_t.half_width(values, confidence), student_t.mean(values)
    return None if half_width is None or not mean else half_width / abs(mean)


def describe(
    reason: str, runtimes_s: Sequence[float], energies_j: Sequence[float | None], confidence: float
) -> Stop:
    """The stop as it is recorded."""
    known = [energy_j for energy_j in energies_j if energy_j is not None]
    return Stop(
        reason=reason,
        trials=len(runtimes_s),
        runtime_half_width_s=student_t.half_width(runtimes_s, confidence),
        energy_half_width_rel=(
            relative_half_width(known, confidence) if len(known) == len(energies_j) else None
        ),
        confidence=confidence,
    )
