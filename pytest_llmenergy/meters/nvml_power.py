"""A board's power, sampled: for boards without an energy counter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.meters.counters import measured, unavailable
from pytest_llmenergy.meters.integrate import Bounded, PowerSample, integrate_power, longest_gap_s
from pytest_llmenergy.meters.nvml_boards import NAME, is_nvml_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.meters.nvml_boards import Board
    from pytest_llmenergy.meters.sampler import Scheduler
    from pytest_llmenergy.records import DomainEnergy

POWER_PERIOD_S = 0.1
_MOST_UNSAMPLED_S = 1.0
_KEEP_S = 7200.0  # of a window whose energy nobody asks for


class PowerBoard:
    """A board whose power is sampled, because it has no energy counter."""

    def __init__(self, board: Board, scheduler: Scheduler) -> None:
        assert board.read_power_w is not None
        self.board = board
        self._read_w: Callable[[], float] = board.read_power_w
        self._scheduler = scheduler
        self._samples: list[PowerSample] = []
        self._failures: list[tuple[float, str]] = []
        self._open: list[float] = []
        scheduler.add(self._sample)

    def _sample(self, now_s: float) -> float:
        self._read(now_s)
        keep_s = max(min(self._open, default=now_s) - 2.0, now_s - _KEEP_S)
        while self._samples and self._samples[0].time_s < keep_s:
            self._samples.pop(0)
        while self._failures and self._failures[0][0] < keep_s:
            self._failures.pop(0)
        return now_s + POWER_PERIOD_S

    def _read(self, now_s: float) -> None:
        try:
            self._samples.append(PowerSample(now_s, self._read_w()))
        except Exception as error:
            if not is_nvml_error(error):
                raise
            self._failures.append((now_s, str(error)))

    def mark(self) -> float:
        """Keep the samples from now on."""
        now_s = self._scheduler.clock()
        self._open.append(now_s)
        return now_s

    def between(self, start: float, end: float, start_s: float, end_s: float) -> DomainEnergy:
        """The energy from start_s to end_s, kept since a mark; waits for the sensor to show the end."""
        board = self.board
        # The sensor shows the mean of the time before: the samples are read that much later.
        lag_s = board.averaging_s / 2
        from_s, until_s = start_s + lag_s, end_s + lag_s
        shown_s = until_s + board.update_period_s + board.averaging_s
        self._scheduler.wait(
            lambda: bool(self._samples) and self._samples[-1].time_s >= shown_s,
            shown_s - end_s + 3 * POWER_PERIOD_S,
        )
        failed = [text for at_s, text in tuple(self._failures) if from_s <= at_s <= until_s]
        samples = tuple(self._samples)
        found = integrate_power(
            samples, from_s, until_s, update_period_s=board.update_period_s, averaging_s=board.averaging_s
        )
        for mark in (start, end):
            self._open.remove(mark)
        if failed:
            return unavailable(board.domain, f"a reading failed: {failed[0]}", NAME)
        gap_s = longest_gap_s(samples, from_s, until_s)
        if found is None or gap_s > _MOST_UNSAMPLED_S:
            return unavailable(board.domain, f"power was not read for {gap_s:.1f} s of the window", NAME)
        if end_s - start_s < board.update_period_s:
            found = Bounded(found.energy_j, max(found.bound_j, found.energy_j))
        return measured(board.domain, found.energy_j, found.bound_j, NAME, board.shared)
