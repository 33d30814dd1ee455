"""NVIDIA GPUs: the energy counter where there is one, sampled power where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmenergy.errors import MeterUnavailableError, Unavailable
from pytest_llmenergy.meters import nvml_boards, visible
from pytest_llmenergy.meters.counters import unavailable
from pytest_llmenergy.meters.nvml_counter import CounterBoard
from pytest_llmenergy.meters.nvml_power import PowerBoard
from pytest_llmenergy.records import MeterSource, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.meters import Domains
    from pytest_llmenergy.meters.nvml_boards import Board
    from pytest_llmenergy.meters.sampler import Scheduler

NAME = nvml_boards.NAME
SELF_CHECK_S = 2.0


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
                    **({} if metered.board.shared is None else {"mig": metered.board.shared}),
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
                    if not nvml_boards.is_nvml_error(error):
                        raise
        return powers_w

    def begin(self) -> list[Any]:
        """Mark every board."""
        return [metered.mark() for metered in self._metered]

    def end(self, mark: list[Any]) -> Callable[[float, float], Domains]:
        """Mark every board again; the energies are known a little later."""
        ends: list[Any] = [metered.mark() for metered in self._metered]
        return lambda start_s, end_s: (
            *(
                metered.between(start, end, start_s, end_s)
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
        if boards[0].failure is not None:
            raise nvml_boards.unavailable(boards[0].failure) from boards[0].failure
        raise MeterUnavailableError(
            NAME,
            Unavailable.NOT_SUPPORTED,
            f"{boards[0].name}: {boards[0].problem}.",
            "A vGPU or Jetson gives no reading to a guest: meter it on the host.",
        )
    return NvmlMeter(boards, scheduler, self_check_s=self_check_s)
