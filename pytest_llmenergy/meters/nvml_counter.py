"""A board's energy counter: read at the ends of windows, and followed from tick to tick where it can be."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.counters import TOO_SHORT, beyond_s, measured, unavailable
from pytest_llmenergy.meters.edges import Edge, energy_between
from pytest_llmenergy.meters.integrate import Bounded, PowerSample, integrate_power, latched_difference
from pytest_llmenergy.meters.nvml_boards import NAME, is_nvml_error
from pytest_llmenergy.meters.ticks import TickTracker
from pytest_llmenergy.units import format_percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.meters.nvml_boards import Board
    from pytest_llmenergy.meters.sampler import Scheduler
    from pytest_llmenergy.records import DomainEnergy

COUNTER_PERIOD_S = 0.1  # taken where it could not be found out: the longest that is reported
SELF_CHECK_LIMIT = 0.1
_CHECK_SAMPLE_S = 0.02
_SURVEY_S = 10.0  # how often a counter that is not followed is looked at for a reset


@dataclass(frozen=True, slots=True)
class CounterMark:
    """The counter at one instant."""

    before_s: float  # it was read at some time from here
    after_s: float  # to here
    energy_j: float = 0.0
    resets: int = 0
    edge: Edge | None = None
    problem: str | None = None


class CounterBoard:
    """A board with an energy counter."""

    def __init__(self, board: Board, scheduler: Scheduler) -> None:
        assert board.read_counter_j is not None
        self.board = board
        self._counter_j: Callable[[], float] = board.read_counter_j
        self._lock = threading.Lock()
        self._scheduler = scheduler
        self._tracker = TickTracker(self._read_j, scheduler.clock)
        self._resets = 0
        self._last_j = 0.0
        self._follows = self._checking = False
        self._samples: list[PowerSample] = []
        scheduler.add(self._survey)

    @property
    def update_period_s(self) -> float:
        """As found out, or as taken."""
        return self._tracker.period_s or COUNTER_PERIOD_S

    def _survey(self, now_s: float) -> float:
        try:
            self._read_j()
        except Exception as error:
            if not is_nvml_error(error):
                raise
        return now_s + _SURVEY_S

    def _read_j(self) -> float:
        """Read; a counter that went back was reset, which is noticed once, by whoever reads first."""
        with self._lock:  # two readers at once could see each other's values in the wrong order
            energy_j = self._counter_j()
            if energy_j < self._last_j:
                self._resets += 1
            self._last_j = energy_j
            return energy_j

    def begin_check(self) -> None:
        """Look for the counter's ticks, and sample power beside them."""
        self._checking = self._follows = True
        self._scheduler.add(self._follow)
        self._scheduler.add(self._sample_power)

    def _sample_power(self, now_s: float) -> float:
        if not self._checking:
            return math.inf
        if self.board.read_power_w is not None:
            try:
                self._samples.append(PowerSample(now_s, self.board.read_power_w()))
            except Exception as error:
                if not is_nvml_error(error):
                    raise
        return now_s + _CHECK_SAMPLE_S

    def end_check(self) -> None:
        """Go on following the ticks if the counter agrees with integrated power; note what was found."""
        self._checking = self._follows = False
        difference = self._difference(self._samples)
        details = self.board.details
        if difference is None:
            details["self_check"] = f"not done: {self._tracker.problem or 'no power to compare with'}"
        elif abs(difference) > SELF_CHECK_LIMIT:
            by = format_percent(difference)
            details["self_check"] = (
                f"failed: the counter differs from integrated power by {by}; its ticks are not followed"
            )
        elif not self._tracker.is_following:
            details["self_check"] = f"not done: {self._tracker.problem or 'the counter ticked too seldom'}"
        else:
            by = format_percent(abs(difference))
            details["self_check"] = f"passed: the counter is within {by} of integrated power"
            self._follows = True
        if difference is not None:
            details["self_check_difference"] = difference

    def _difference(self, samples: list[PowerSample]) -> float | None:
        """What the counter counted between its ticks, over what power says, less 1."""
        ticks = [tick for tick in self._tracker.ticks if samples and tick.time_s >= samples[0].time_s]
        if len(samples) < 2:  # noqa: PLR2004 - an integral needs two
            return None
        if len(ticks) > 2:  # noqa: PLR2004 - fewer tell nothing of the rate
            counted_j, from_s, until_s = (
                ticks[-1].energy_j - ticks[0].energy_j,
                ticks[0].time_s,
                ticks[-1].time_s,
            )
        else:
            counted_j, from_s, until_s = 0.0, samples[0].time_s, samples[-1].time_s
        integrated = integrate_power(samples, from_s, until_s, update_period_s=0, averaging_s=0)
        if integrated is None or integrated.energy_j <= 0:
            return None
        return counted_j / integrated.energy_j - 1

    def _follow(self, now_s: float) -> float:
        if not self._follows:
            return math.inf
        try:
            return self._tracker.run(now_s)
        except Exception as error:
            if not is_nvml_error(error):
                raise
            return now_s + 1.0

    def mark(self) -> CounterMark:
        """Read the counter now."""
        before_s = self._scheduler.clock()
        try:
            edge = self._tracker.edge() if self._follows else None
            energy_j = self._read_j() if edge is None else edge.energy_j
        except Exception as error:
            if not is_nvml_error(error):
                raise
            return CounterMark(before_s, before_s, problem=str(error))
        if edge is not None:
            self._scheduler.hasten(self._follow, self._tracker.next_look_s)
        return CounterMark(before_s, self._scheduler.clock(), energy_j, self._resets, edge)

    def between(self, start: CounterMark, end: CounterMark, start_s: float, end_s: float) -> DomainEnergy:
        """The energy from start_s to end_s, which two marks hold; may wait for two ticks after the end."""
        domain = self.board.domain
        problem = start.problem or end.problem
        if problem is not None:
            return unavailable(domain, f"a reading failed: {problem}", NAME)
        if end.resets != start.resets or end.energy_j < start.energy_j:
            return unavailable(domain, "the energy counter was reset inside the window", NAME)
        cap_w = self.board.power_limit_w or math.inf
        runtime_s = end.after_s - start.before_s
        mean_w = (end.energy_j - start.energy_j) / runtime_s if runtime_s > 0 else 0.0
        likely_cap_w = cap_w if math.isfinite(cap_w) else 2 * mean_w
        found = self._between_ticks(start, end, cap_w) or latched_difference(
            end.energy_j - start.energy_j, update_period_s=self.update_period_s, power_cap_w=likely_cap_w
        )
        bound_j = found.bound_j + likely_cap_w * beyond_s(start.before_s, start_s, end_s, end.after_s)
        if found.energy_j <= 0:
            period_ms = 1e3 * self.update_period_s
            return unavailable(
                domain, f"{TOO_SHORT}: the counter ticks every {period_ms:.0f} ms and did not move", NAME
            )
        return measured(domain, found.energy_j, bound_j, NAME, self.board.shared)

    def _between_ticks(self, start: CounterMark, end: CounterMark, cap_w: float) -> Bounded | None:
        if start.edge is None or end.edge is None:
            return None
        edge, period_s = end.edge, self.update_period_s
        if not edge.is_settled:
            self._scheduler.wait(lambda: edge.is_settled, 3 * period_s)
        return energy_between(start.edge, edge, period_s=period_s, cap_w=cap_w)
