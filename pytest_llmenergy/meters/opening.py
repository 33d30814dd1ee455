"""Which meters this machine has: chosen by name, or the best of each kind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import MeterUnavailableError, RequestError
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.meters.nvml import SELF_CHECK_S
from pytest_llmenergy.meters.sampler import Sampler
from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import MeterSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmenergy.meters import Meter
    from pytest_llmenergy.meters.sampler import Scheduler

AUTO = "auto"
NAMES = ("nvml", "rapl", "uprof", "amd_energy", "estimate")
# The first of these that opens meters the CPU. uProf is started only for those who ask.
_CPU_ORDER = ("amd_energy", "rapl")


class _Opener:
    """Opens meters by name and keeps why the others are not in use."""

    def __init__(self, scheduler: Scheduler, machine: Machine, self_check_s: float) -> None:
        self._scheduler = scheduler
        self._machine = machine
        self._self_check_s = self_check_s

    def open(self, name: str) -> Meter:
        match name:
            case "nvml":
                from pytest_llmenergy.meters.nvml import open_nvml

                return open_nvml(self._scheduler, self_check_s=self._self_check_s)
            case "rapl":
                from pytest_llmenergy.meters.rapl import open_rapl

                return open_rapl(self._scheduler, self._machine)
            case "amd_energy":
                from pytest_llmenergy.meters.amd_energy import open_amd_energy

                return open_amd_energy(self._scheduler, self._machine)
            case "uprof":
                from pytest_llmenergy.meters.uprof import open_uprof

                return open_uprof(self._scheduler, self._machine)
            case "estimate":
                from pytest_llmenergy.meters.estimate import EstimateMeter

                return EstimateMeter(self._machine)
            case _:
                raise RequestError(f"there is no meter {name!r}; there are {AUTO}, {', '.join(NAMES)}.")


def _not_in_use(name: str, error: MeterUnavailableError) -> MeterSource:
    return MeterSource(
        name=name,
        available=False,
        reason=error.problem,
        remedy=error.remedy or None,
        details={"unavailable": str(error.reason)},
    )


def open_meters(
    names: Sequence[str] = (AUTO,),
    *,
    clock: Callable[[], float] = time.perf_counter,
    require_measured: bool = False,
    machine: Machine | None = None,
    self_check_s: float = SELF_CHECK_S,
) -> Meters:
    """Open meters.

    Args:
        names: `auto` takes NVML for the GPUs if there are any, and for the CPU the first of amd_energy, RAPL
            and the estimate; else nvml, rapl, uprof, amd_energy, estimate, any of them.
        clock: seconds, monotonic.
        require_measured: an estimate is then an error.
        machine: where sysfs and procfs are.
        self_check_s: how long a GPU's energy counter is compared with its power at the start; 0 leaves that
            out, and the bounds are then wider.

    Raises:
        RequestError: there is no such meter, or an estimate would be needed where none is wanted.
        MeterUnavailableError: a meter that was asked for by name gives no reading.
    """
    wanted = [name.strip() for name in names if name.strip()] or [AUTO]
    for name in wanted:
        if name not in (AUTO, *NAMES):
            raise RequestError(f"there is no meter {name!r}; there are {AUTO}, {', '.join(NAMES)}.")
    if require_measured and "estimate" in wanted:
        raise RequestError("an estimate was asked for, and that nothing be estimated. Leave one of them out.")
    sampler = Sampler(clock)
    opener = _Opener(sampler, machine or Machine.here(), self_check_s)
    opened: dict[str, Meter] = {}
    others: list[MeterSource] = []

    def attempt(name: str) -> bool:
        if name not in opened:
            try:
                opened[name] = opener.open(name)
            except MeterUnavailableError as error:
                others.append(_not_in_use(name, error))
                return False
        return True

    try:
        for name in wanted:
            if name != AUTO:
                opened.setdefault(name, opener.open(name))
        if AUTO in wanted:
            attempt("nvml")
            if not {"rapl", "uprof", "amd_energy"} & set(opened) and not any(map(attempt, _CPU_ORDER)):
                if require_measured:
                    raise RequestError(_only_an_estimate(others))  # noqa: TRY301 - what is open is closed below
                attempt("estimate")
        used = {*opened, *(source.name for source in others)}
        others += [
            MeterSource(name=name, available=False, reason="was not asked for.")
            for name in NAMES
            if name not in used
        ]
        return Meters(opened.values(), others=others, sampler=sampler, clock=clock)
    except BaseException:
        for meter in opened.values():
            meter.close()
        sampler.close()
        raise


def _only_an_estimate(others: Sequence[MeterSource]) -> str:
    lines = [
        f"  {source.name}: {source.reason} {source.remedy or ''}".rstrip()
        for source in others
        if source.name in _CPU_ORDER
    ]
    return "\n".join(
        [
            "the CPU's energy can only be estimated here, and measured energy is required.",
            *lines,
            "Mend one of these, name the meters to use, or allow estimates.",
        ]
    )
