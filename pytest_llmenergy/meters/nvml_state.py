"""What else goes on on an NVIDIA board: who computes there, and what slows it down."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_llmenergy.meters.nvml_boards import optional

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.meters.nvml_boards import Board


def foreign_processes(board: Board, own: Callable[[], set[int]]) -> set[int]:
    """Process ids that compute on the board and are not ours; empty where the driver does not tell.

    In a container the driver may number processes as the host does. Then none of them is ours by number, and
    a single one is taken to be us.
    """
    import pynvml

    processes = optional(pynvml.nvmlDeviceGetComputeRunningProcesses, board.handle)
    if not processes or board.mig is not None:
        return set()
    pids = {process.pid for process in processes}
    ours = own()
    is_hosts_numbering = not pids & ours and _has_opened_cuda() and len(pids) == 1
    return set() if is_hosts_numbering else pids - ours


def _has_opened_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def throttle_mask(board: Board) -> int | None:
    """The bits of nvmlClocksEventReasons now; None where the driver does not tell."""
    import pynvml

    for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        call = getattr(pynvml, name, None)
        mask = None if call is None else optional(call, board.handle)
        if mask is not None:
            return int(mask)
    return None
