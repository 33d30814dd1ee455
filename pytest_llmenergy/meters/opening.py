"""Which meters this machine has: chosen by name, or the best of each kind."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import MeterUnavailableError, RequestError
from pytest_llmenergy.meters.machine import Machine
from pytest_llmenergy.meters.nvml import SELF_CHECK_S
from pytest_llmenergy.meters.sampler import Sampler
from pytest_llmenergy.meters.trace import Trace
from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import MeterSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmenergy.meters import Meter, Watch

AUTO = "auto"
NAMES = ("nvml", "rapl", "uprof", "amd_energy", "estimate")
# The first of these that opens meters the CPU. uProf is started only for those who ask.
_CPU_ORDER = ("amd_energy", "rapl")


class _Opener:
    """Opens meters by name and keeps why the others are not in use."""

    def __init__(self, sampler: Sampler, machine: Machine, self_check_s: float) -> None:
        self._sampler = sampler
        self._machine = machine
        self._self_check_s = self_check_s
        self.opened: dict[str, Meter] = {}
        self.others: list[MeterSource] = []

    def open(self, name: str) -> None:
        """Open a meter that is not open yet."""
        if name not in self.opened:
            self.opened[name] = self._open(name)

    def attempt(self, name: str) -> bool:
        """Open a meter, or keep why it cannot be; whether it is open."""
        try:
            self.open(name)
        except MeterUnavailableError as error:
            self.others.append(
                MeterSource(
                    name=name,
                    available=False,
                    reason=error.problem,
                    remedy=error.remedy or None,
                    details={"unavailable": str(error.reason)},
                )
            )
            return False
        return True

    def look(self, name: str) -> None:
        """Open a meter only to tell of it: a wrong request, for a GPU that is not there, is told as well."""
        try:
            self.attempt(name)
        except RequestError as error:
            self.others.append(MeterSource(name=name, available=False, reason=str(error)))

    def watches(self) -> list[Watch]:
        """What looks out for disturbance of what is metered."""
        from pytest_llmenergy.meters.interference import CpuWatch, GpuWatch
        from pytest_llmenergy.meters.nvml import NvmlMeter

        gpus = [meter for meter in self.opened.values() if isinstance(meter, NvmlMeter)]
        return [
            *(GpuWatch(meter.boards, self._sampler, self._machine) for meter in gpus),
            CpuWatch(self._machine, self._sampler),
        ]

    def not_in_use(self) -> list[MeterSource]:
        """Every other source there is, with the reason."""
        seen = {*self.opened, *(source.name for source in self.others)}
        unasked = [
            MeterSource(name=name, available=False, reason="not asked for")
            for name in NAMES
            if name not in seen
        ]
        return [*self.others, *unasked]

    def close(self) -> None:
        """Close what is open, also when one of them fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._sampler.close)
            for meter in self.opened.values():
                stack.callback(meter.close)

    def _open(self, name: str) -> Meter:
        match name:
            case "nvml":
                from pytest_llmenergy.meters.nvml import open_nvml

                return open_nvml(self._sampler, self_check_s=self._self_check_s)
            case "rapl":
                from pytest_llmenergy.meters.rapl import open_rapl

                return open_rapl(self._sampler, self._machine)
            case "amd_energy":
                from pytest_llmenergy.meters.amd_energy import open_amd_energy

                return open_amd_energy(self._sampler, self._machine)
            case "uprof":
                from pytest_llmenergy.meters.uprof import open_uprof

                return open_uprof(self._sampler, self._machine)
            case _:
                from pytest_llmenergy.meters.estimate import EstimateMeter

                return EstimateMeter(self._machine)


def open_meters(
    names: Sequence[str] = (AUTO,),
    *,
    clock: Callable[[], float] = time.perf_counter,
    require_measured: bool = False,
    machine: Machine | None = None,
    self_check_s: float = SELF_CHECK_S,
    trace: bool = False,
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
        trace: keep every domain's power ten times a second (`Meters.trace`).

    Raises:
        RequestError: there is no such meter, or an estimate would be needed where none is wanted.
        MeterUnavailableError: a meter that was asked for by name gives no reading.
    """
    wanted = _checked(names, require_measured=require_measured)
    sampler = Sampler(clock)
    opener = _Opener(sampler, machine or Machine.here(), self_check_s)
    try:
        for name in wanted:
            if name != AUTO:
                opener.open(name)
        if AUTO in wanted:
            opener.attempt("nvml")
            by_name = {"rapl", "uprof", "amd_energy", "estimate"} & set(opener.opened)
            if not by_name and not any(map(opener.attempt, _CPU_ORDER)):
                if require_measured:
                    raise RequestError(_only_an_estimate(opener.others))  # noqa: TRY301 - closed below
                opener.open("estimate")
    except BaseException:
        opener.close()
        raise
    return Meters(
        opener.opened.values(),
        others=opener.not_in_use(),
        watches=opener.watches(),
        sampler=sampler,
        trace=Trace(opener.opened.values(), sampler) if trace else None,
        clock=clock,
    )


def _checked(names: Sequence[str], *, require_measured: bool) -> list[str]:
    wanted = [name.strip() for name in names if name.strip()] or [AUTO]
    for name in wanted:
        if name not in {AUTO, *NAMES}:
            raise RequestError(f"there is no meter {name!r}; there are {AUTO}, {', '.join(NAMES)}.")
    if require_measured and "estimate" in wanted:
        raise RequestError("an estimate was asked for, and that nothing be estimated. Leave one of them out.")
    return wanted


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


def survey(machine: Machine | None = None, *, self_check_s: float = SELF_CHECK_S) -> tuple[MeterSource, ...]:
    """Every source there is on this machine: opened, looked at and closed again.

    A GPU's counter is compared with its power for `self_check_s`; a uProf recorder runs for some seconds.
    """
    sampler = Sampler()
    opener = _Opener(sampler, machine or Machine.here(), self_check_s)
    try:
        for name in NAMES:
            opener.look(name)
        found = {meter.source.name: meter.source for meter in opener.opened.values()}
    finally:
        opener.close()
    found.update({source.name: source for source in opener.others})
    return tuple(found[name] for name in NAMES)
