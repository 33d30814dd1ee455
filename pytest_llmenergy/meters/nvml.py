"""NVIDIA GPUs: the energy counter where there is one, sampled power where there is none."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters import nvml_boards, visible
from pytest_llmenergy.meters.counters import TOO_SHORT, measured, unavailable
from pytest_llmenergy.meters.integrate import (
    Bounded,
    PowerSample,
    integrate_power,
    latched_difference,
    longest_gap_s,
)
from pytest_llmenergy.meters.ticks import Edge, TickTracker, energy_between
from pytest_llmenergy.records import DomainEnergy, MeterSource, Provenance
from pytest_llmenergy.units import format_percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.meters import Domains
    from pytest_llmenergy.meters.nvml_boards import Board
    from pytest_llmenergy.meters.sampler import Scheduler

NAME = nvml_boards.NAME
COUNTER_PERIOD_S = 0.1  # taken where it could not be found out: the longest that is reported
POWER_PERIOD_S = 0.1
SELF_CHECK_S = 2.0
SELF_CHECK_LIMIT = 0.1
_CHECK_SAMPLE_S = 0.02
_MOST_UNSAMPLED_S = 1.0
_KEEP_S = 7200.0  # of a window whose energy nobody asks for
_SURVEY_S = 10.0  # how often a counter that is not followed is looked at for a reset


@dataclass(frozen=True, slots=True)
class CounterMark:
    """The counter at one instant."""

    time_s: float
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
        self._tracker = TickTracker(self._read_j)
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
            if not _is_nvml_error(error):
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
                if not _is_nvml_error(error):
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
            details["self_check"] = f"failed: the counter differs from integrated power by {by}"
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
            if not _is_nvml_error(error):
                raise
            return now_s + 1.0

    def mark(self) -> CounterMark:
        """Read the counter now."""
        before_s = self._scheduler.clock()
        try:
            energy_j = self._read_j()
        except Exception as error:
            if not _is_nvml_error(error):
                raise
            return CounterMark(before_s, problem=str(error))
        now_s = (before_s + self._scheduler.clock()) / 2
        edge = self._tracker.edge(now_s, energy_j) if self._follows else None
        if edge is not None:
            self._scheduler.hasten(self._follow, self._tracker.next_due_s(now_s))
        return CounterMark(now_s, energy_j, self._resets, edge)

    def between(self, start: CounterMark, end: CounterMark) -> DomainEnergy:
        """The energy of a window; may wait for the two ticks after its end."""
        domain = self.board.domain
        problem = start.problem or end.problem
        if problem is not None:
            return unavailable(domain, f"a reading failed: {problem}", NAME)
        if end.resets != start.resets or end.energy_j < start.energy_j:
            return unavailable(domain, "the energy counter was reset inside the window", NAME)
        cap_w = self.board.power_limit_w or math.inf
        found = self._between_ticks(start, end, cap_w)
        if found is None:
            runtime_s = end.time_s - start.time_s
            mean_w = (end.energy_j - start.energy_j) / runtime_s if runtime_s > 0 else 0.0
            found = latched_difference(
                end.energy_j - start.energy_j,
                update_period_s=self.update_period_s,
                power_cap_w=cap_w if math.isfinite(cap_w) else 2 * mean_w,
            )
        reason = None if self.board.mig is None else f"the whole board, which {self.board.mig} shares"
        if found.energy_j <= 0:
            period_ms = 1e3 * self.update_period_s
            return unavailable(
                domain, f"{TOO_SHORT}: the counter ticks every {period_ms:.0f} ms and did not move", NAME
            )
        return measured(domain, found.energy_j, found.bound_j, NAME, reason)

    def _between_ticks(self, start: CounterMark, end: CounterMark, cap_w: float) -> Bounded | None:
        if start.edge is None or end.edge is None:
            return None
        edge, period_s = end.edge, self.update_period_s
        if not edge.is_settled:
            self._scheduler.wait(lambda: edge.is_settled, 3 * period_s)
        return energy_between(start.edge, edge, period_s=period_s, cap_w=cap_w)


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
        return now_s + POWER_PERIOD_S

    def _read(self, now_s: float) -> None:
        try:
            self._samples.append(PowerSample(now_s, self._read_w()))
        except Exception as error:
            if not _is_nvml_error(error):
                raise
            self._failures.append((now_s, str(error)))

    def mark(self) -> CounterMark:
        """Keep the samples from now on."""
        now_s = self._scheduler.clock()
        self._open.append(now_s)
        return CounterMark(now_s)

    def between(self, start: CounterMark, end: CounterMark) -> DomainEnergy:
        """The energy of a window; waits for the sensor to show the window's end."""
        board = self.board
        # The sensor shows the mean of the time before: the samples are read that much later.
        lag_s = board.averaging_s / 2
        from_s, until_s = start.time_s + lag_s, end.time_s + lag_s
        shown_s = until_s + board.update_period_s + board.averaging_s
        self._scheduler.wait(
            lambda: bool(self._samples) and self._samples[-1].time_s >= shown_s,
            shown_s - end.time_s + 3 * POWER_PERIOD_S,
        )
        failed = [text for at_s, text in self._failures if from_s <= at_s <= until_s]
        samples = tuple(self._samples)
        found = integrate_power(
            samples, from_s, until_s, update_period_s=board.update_period_s, averaging_s=board.averaging_s
        )
        for mark in (start, end):
            self._open.remove(mark.time_s)
        if failed:
            return unavailable(board.domain, f"a reading failed: {failed[0]}", NAME)
        gap_s = longest_gap_s(samples, from_s, until_s)
        if found is None or gap_s > _MOST_UNSAMPLED_S:
            return unavailable(board.domain, f"power was not read for {gap_s:.1f} s of the window", NAME)
        if end.time_s - start.time_s < board.update_period_s:
            found = Bounded(found.energy_j, max(found.bound_j, found.energy_j))
        reason = None if board.mig is None else f"the whole board, which {board.mig} shares"
        return measured(board.domain, found.energy_j, found.bound_j, NAME, reason)


def _is_nvml_error(error: Exception) -> bool:
    import pynvml

    return isinstance(error, pynvml.NVMLError)


class NvmlMeter:
    """The GPUs that this process may use."""

    def __init__(
        self, boards: list[Board], scheduler: Scheduler, *, self_check_s: float = SELF_CHECK_S
    ) -> None:
        self.boards = tuple(boards)
        self._metered: list[CounterBoard | PowerBoard] = []
        self._broken = {board.domain: board.problem for board in boards if board.problem is not None}
        for board in boards:
            if board.read_counter_j is not None:
                self._metered.append(CounterBoard(board, scheduler))
            elif board.read_power_w is not None:
                self._metered.append(PowerBoard(board, scheduler))
        counters = [metered for metered in self._metered if isinstance(metered, CounterBoard)]
        if self_check_s > 0 and counters:
            for counter in counters:
                counter.begin_check()
            scheduler.wait(lambda: False, self_check_s)  # all boards at once
            for counter in counters:
                counter.end_check()

    @property
    def source(self) -> MeterSource:
        """A domain a board, with what was found out about it."""
        return MeterSource(
            name=NAME,
            available=True,
            domains=tuple(board.domain for board in self.boards),
            provenance=Provenance.MEASURED,
            reason="; ".join(f"{domain}: {problem}" for domain, problem in self._broken.items()) or None,
            details={
                metered.board.domain: {
                    "name": metered.board.name,
                    "uuid": metered.board.uuid,
                    "power_limit_w": metered.board.power_limit_w,
                    "method": "counter" if isinstance(metered, CounterBoard) else "sampled power",
                    "update_period_s": metered.update_period_s
                    if isinstance(metered, CounterBoard)
                    else metered.board.update_period_s,
                    **metered.board.details,
                }
                for metered in self._metered
            },
        )

    def power_w(self) -> dict[str, float]:
        """Power of each board that tells it."""
        powers_w = {}
        for board in self.boards:
            if board.read_power_w is not None:
                try:
                    powers_w[board.domain] = board.read_power_w()
                except Exception as error:
                    if not _is_nvml_error(error):
                        raise
        return powers_w

    def begin(self) -> list[CounterMark]:
        """Mark every board."""
        return [metered.mark() for metered in self._metered]

    def end(self, mark: list[CounterMark]) -> Callable[[], Domains]:
        """Mark every board again; the energies are known a little later."""
        ends = [metered.mark() for metered in self._metered]
        return lambda: (
            *(
                metered.between(start, end)
                for metered, start, end in zip(self._metered, mark, ends, strict=True)
            ),
            *(unavailable(domain, problem, NAME) for domain, problem in self._broken.items()),
        )

    def close(self) -> None:
        """Let the driver go."""
        nvml_boards.shutdown()


def open_nvml(scheduler: Scheduler, *, self_check_s: float = SELF_CHECK_S) -> NvmlMeter:
    """Open the GPUs that `CUDA_VISIBLE_DEVICES` leaves visible.

    Raises:
        MeterUnavailableError: there is no driver, no GPU, or none gives a reading.
        RequestError: the variable names a device that is not there.
    """
    boards = nvml_boards.visible_boards(visible.here())
    if not boards:
        nvml_boards.shutdown()
        raise MeterUnavailableError(
            NAME,
            Unavailable.NO_DEVICE,
            "no GPU is visible to this process.",
            f"Look at {visible.VARIABLE} and at nvidia-smi -L.",
        )
    if all(board.problem is not None for board in boards):
        nvml_boards.shutdown()
        raise MeterUnavailableError(
            NAME,
            Unavailable.NOT_SUPPORTED,
            f"{boards[0].name}: {boards[0].problem}.",
            "A vGPU or Jetson gives no reading to a guest: meter it on the host.",
        )
    return NvmlMeter(boards, scheduler, self_check_s=self_check_s)
