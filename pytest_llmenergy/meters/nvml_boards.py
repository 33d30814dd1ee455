"""The NVIDIA boards of this process: nvidia-ml-py for all but the energy counter."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llmenergy import units
from pytest_llmenergy.errors import MeterUnavailableError, RequestError, Unavailable
from pytest_llmenergy.meters import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

NAME = "nvml"

# What the driver's return codes mean to a person (nvml.h), and what would help.
_REASONS = {
    3: (Unavailable.NOT_SUPPORTED, ""),
    4: (Unavailable.NO_PERMISSION, "Run as a user who may open /dev/nvidiactl."),
    9: (Unavailable.NO_DEVICE, "Load the NVIDIA driver: sudo modprobe nvidia"),
    12: (Unavailable.NOT_INSTALLED, "Install the NVIDIA driver if there is an NVIDIA GPU."),
    13: (Unavailable.NOT_SUPPORTED, "Install a newer NVIDIA driver."),
    15: (Unavailable.READ_FAILED, "The GPU has fallen off the bus: reset it or reboot."),
    18: (Unavailable.NOT_INSTALLED, "Driver and library differ in version: reboot, or reload the driver."),
}


@dataclass(slots=True)
class Board:
    """One GPU. A MIG instance stands for its board: the board's sensors are all there are."""

    index: int
    name: str
    uuid: str
    handle: Any
    mig: str | None = None
    architecture: int | None = None
    power_limit_w: float | None = None
    memory_b: int | None = None
    read_counter_j: Callable[[], float] | None = None
    read_power_w: Callable[[], float] | None = None
    averaging_s: float = 0.0
    update_period_s: float = 0.1
    problem: str | None = None  # why neither gives a reading
    failure: Exception | None = None  # the driver's, where the board did not answer at all
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """Our name of it, by the driver's index."""
        return f"gpu:{self.index}"

    @property
    def shared(self) -> str | None:
        """Whose energy a reading holds beside ours; None where it is ours alone."""
        return None if self.mig is None else f"the whole board, not {self.mig} alone"


def unavailable(error: Exception) -> MeterUnavailableError:
    """An NVML error as ours."""
    reason, remedy = _REASONS.get(getattr(error, "value", 0), (Unavailable.READ_FAILED, ""))
    return MeterUnavailableError(NAME, reason, f"{error}.", remedy)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def optional(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or None where this driver or board does not have it."""
    import pynvml

    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None


def visible_boards(selectors: tuple[visible.Selector, ...] | None) -> list[Board]:
    """The boards that the process may use.

    Raises:
        MeterUnavailableError: the driver is absent, or a board it should have is not there.
        RequestError: `CUDA_VISIBLE_DEVICES` names a device that is not on this machine.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise unavailable(error) from error
    try:
        count = pynvml.nvmlDeviceGetCount()
        if selectors is None:
            return [_answering_board(pynvml, index) for index in range(count)]
        uuids = [_uuid(pynvml, index) for index in range(count)]
        boards: dict[int, Board] = {}
        for selector in selectors:
            index = _index(pynvml, selector, uuids)
            boards.setdefault(index, _answering_board(pynvml, index, selector.mig))
        return [boards[index] for index in sorted(boards)]
    except pynvml.NVMLError as error:
        raise unavailable(error) from error


def _index(pynvml: ModuleType, selector: visible.Selector, uuids: list[str]) -> int:
    if selector.index is not None and selector.index < len(uuids):
        return selector.index
    if selector.uuid is not None:
        matches = [index for index, uuid in enumerate(uuids) if uuid.startswith(selector.uuid)]
        if len(matches) == 1:
            return matches[0]
    elif selector.mig is not None:
        matches = [index for index in range(len(uuids)) if _has_instance(pynvml, index, selector.mig)]
        if len(matches) == 1:
            return matches[0]
    names = ", ".join(uuid or "one that does not answer" for uuid in uuids)
    raise RequestError(
        f"{visible.VARIABLE} names {selector.text!r}, which is not on this machine. Its GPUs: {names}. "
        "Mend or unset the variable (nvidia-smi -L lists the names)."
    )


def _uuid(pynvml: ModuleType, index: int) -> str:
    """Its UUID; empty of a board that does not answer, which is no reason to do without the others."""
    handle = optional(pynvml.nvmlDeviceGetHandleByIndex, index)
    return "" if handle is None else _text(optional(pynvml.nvmlDeviceGetUUID, handle) or "")


def _has_instance(pynvml: ModuleType, index: int, name: str) -> bool:
    """Whether a MIG instance of this name, which may be shortened, is on the board."""
    handle = optional(pynvml.nvmlDeviceGetHandleByIndex, index)
    return handle is not None and any(uuid.startswith(name) for uuid in _mig_uuids(pynvml, handle))


def _mig_uuids(pynvml: ModuleType, handle: Any) -> Iterator[str]:
    for number in range(optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is not None:
            yield _text(pynvml.nvmlDeviceGetUUID(instance))


def _answering_board(pynvml: ModuleType, index: int, mig: str | None = None) -> Board:
    """A board; one that is lost is there all the same, with the reason, since its energy is missing."""
    try:
        return _board(pynvml, index, mig)
    except pynvml.NVMLError as error:
        return Board(index=index, name="unknown GPU", uuid="", handle=None, problem=str(error), failure=error)


def _board(pynvml: ModuleType, index: int, mig: str | None) -> Board:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    mode = optional(pynvml.nvmlDeviceGetMigMode, handle)
    if mig is None and mode is not None and mode[0]:
        mig = "one of its MIG instances"
    limit_mw = optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    memory = optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    board = Board(
        index=index,
        name=_text(optional(pynvml.nvmlDeviceGetName, handle) or "unknown GPU"),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        handle=handle,
        mig=mig,
        architecture=optional(pynvml.nvmlDeviceGetArchitecture, handle),
        power_limit_w=None if limit_mw is None else units.watts_from_milliwatts(limit_mw),
        memory_b=None if memory is None else int(memory.total),
    )
    _find_power(pynvml, board)
    _find_counter(pynvml, board)
    return board


def _find_counter(pynvml: ModuleType, board: Board) -> None:
    """Take the energy counter through pyJoules if its unit is what we think, else directly."""
    try:
        direct_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(board.handle)
    except pynvml.NVMLError as error:
        board.details["counter"] = f"no energy counter: {error}"
        if board.read_power_w is None:
            board.problem = f"neither energy counter nor power: {error}"
        return

    def read_directly() -> float:
        return units.joules_from_millijoules(pynvml.nvmlDeviceGetTotalEnergyConsumption(board.handle))

    board.read_counter_j = read_directly
    from pyJoules.device.nvidia_device import NvidiaGPUDevice, NvidiaGPUDomain

    device = NvidiaGPUDevice()
    device.configure([NvidiaGPUDomain(board.index)])
    through_pyjoules = device.get_energy()[0]
    unit = unit_of(through_pyjoules, direct_mj)
    if unit is None:
        board.details["unit_check"] = (
            f"pyJoules read {through_pyjoules}, NVML {direct_mj} mJ: no unit fits, so NVML is read directly"
        )
        return
    convert = units.joules_from_millijoules if unit == "mJ" else units.joules_from_microjoules

    def read_through_pyjoules() -> float:
        return convert(device.get_energy()[0])

    board.read_counter_j = read_through_pyjoules
    board.details["unit_check"] = f"passed: pyJoules counts in {unit}"


def unit_of(through_pyjoules: float, direct_mj: float) -> str | None:
    """The unit of pyJoules' reading, against one of NVML's in mJ taken just before; None where none fits.

    pyJoules 0.5.1 gives mJ where it documents µJ; its sources since give µJ.
    """
    if direct_mj <= 0:
        return None
    ratio = through_pyjoules / direct_mj
    for unit, factor in (("mJ", 1.0), ("µJ", 1e3)):
        # The counter may have gone on in between, by no more than a second at 10 kW.
        if 0.99 * factor <= ratio <= 1.01 * factor or 0 <= ratio - factor <= factor * 1e7 / direct_mj:
            return unit
    return None


def _find_power(pynvml: ModuleType, board: Board) -> None:
    """Take the most instantaneous power reading that the board gives."""
    fields = (
        ("instant", getattr(pynvml, "NVML_FI_DEV_POWER_INSTANT", 186), 0.025),
        ("average", getattr(pynvml, "NVML_FI_DEV_POWER_AVERAGE", 185), 1.0),
    )
    for name, number, averaging_s in fields:

        def read_field(number: int = number) -> float:
            value = pynvml.nvmlDeviceGetFieldValues(board.handle, [number])[0]
            if value.nvmlReturn:  # the call succeeds, each field has an error of its own
                raise pynvml.NVMLError(value.nvmlReturn)
            return units.watts_from_milliwatts(value.value.uiVal)

        if optional(read_field):
            board.read_power_w, board.averaging_s = read_field, averaging_s
            board.details["power"] = f"field {number} ({name})"
            return

    def read_usage() -> float:
        return units.watts_from_milliwatts(pynvml.nvmlDeviceGetPowerUsage(board.handle))

    if optional(read_usage) is not None:
        board.read_power_w = read_usage
        board.averaging_s, board.update_period_s = _usage_sensor(pynvml, board)
        board.details["power"] = "power usage"


def _usage_sensor(pynvml: ModuleType, board: Board) -> tuple[float, float]:
    """Averaging time and update period of nvmlDeviceGetPowerUsage in s (nvml.h; arXiv 2312.02741)."""
    architecture = board.architecture or 0
    if (
        architecture >= pynvml.NVML_DEVICE_ARCH_AMPERE
        and "A100" not in board.name
        and "A30" not in board.name
    ):
        return 1.0, 0.1
    if architecture == pynvml.NVML_DEVICE_ARCH_VOLTA:
        return 0.01, 0.02
    return (0.025 if "A100" in board.name or "A30" in board.name else 0.1), 0.1


def shutdown() -> None:
    """Let the driver go, if it still answers."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def is_nvml_error(error: Exception) -> bool:
    """Whether the driver said so."""
    import pynvml

    return isinstance(error, pynvml.NVMLError)
