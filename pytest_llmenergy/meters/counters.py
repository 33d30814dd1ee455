"""Energy counters in files: what powercap and the amd_energy monitor have in common."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy import units
from pytest_llmenergy.meters.integrate import latched_difference, modular_difference
from pytest_llmenergy.records import DomainEnergy, MeterSource, Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_llmenergy.meters import Domains
    from pytest_llmenergy.meters.sampler import Scheduler

LONGEST_GAP_S = 60.0
TOO_SHORT = "too short"  # how the reason of a window begins that its source cannot tell from nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A counter at one instant."""

    energy_uj: int
    epoch: int
    problem: str | None
    before_s: float  # it was read at some time from here
    after_s: float  # to here


class FileCounter:
    """One counter, made to count on without end.

    It is read by windows and in the background, so that no more than one wrap can lie between two readings;
    where one might, the epoch changes and no window may span that.
    """

    def __init__(
        self, domain: str, path: Path, *, modulus: int, power_cap_w: float, update_period_s: float
    ) -> None:
        self.domain = domain
        self.path = path
        self.power_cap_w = power_cap_w
        self.update_period_s = update_period_s
        self.problem: str | None = None
        self._modulus = modulus
        self._lock = threading.Lock()
        self._energy_uj = 0
        self._epoch = 0
        self._last: tuple[float, int] | None = None

    @property
    def wrap_s(self) -> float:
        """The shortest time in which the counter goes round."""
        return units.joules_from_microjoules(self._modulus) / self.power_cap_w

    def read(self, clock: Callable[[], float]) -> Mark:
        """Read the file; a problem is kept in the mark."""
        with self._lock:
            now_s, self.problem = clock(), None
            try:
                raw = int(self.path.read_text(encoding="ascii"))
            except (OSError, ValueError) as error:
                self.problem = f"{self.path} cannot be read ({getattr(error, 'strerror', None) or error})"
                return self._mark(now_s, clock())
            if self._last is not None:
                last_s, last_raw = self._last
                if now_s - last_s >= self.wrap_s:
                    self._epoch += 1
                self._energy_uj += modular_difference(last_raw, raw, self._modulus)
            self._last = (now_s, raw)
            return self._mark(now_s, clock())

    def _mark(self, before_s: float, after_s: float) -> Mark:
        return Mark(
            energy_uj=self._energy_uj,
            epoch=self._epoch,
            problem=self.problem,
            before_s=before_s,
            after_s=after_s,
        )

    def between(self, one: Mark, two: Mark, start_s: float, end_s: float, meter: str) -> DomainEnergy:
        """The energy from start_s to end_s, which two marks hold between them."""
        problem = one.problem or two.problem
        if problem is None and one.epoch != two.epoch:
            problem = "the counter was not read for so long that it may have gone round more than once"
        if problem is not None:
            return unavailable(self.domain, problem, meter)
        found = latched_difference(
            units.joules_from_microjoules(two.energy_uj - one.energy_uj),
            update_period_s=self.update_period_s,
            power_cap_w=self.power_cap_w,
        )
        beyond_j = self.power_cap_w * beyond_s(one.before_s, start_s, end_s, two.after_s)
        return measured(self.domain, found.energy_j, found.bound_j + beyond_j, meter)


def beyond_s(read_from_s: float, start_s: float, end_s: float, read_until_s: float) -> float:
    """For how long two readings may hold more than the block between them: a reader may be kept waiting."""
    return max(0.0, start_s - read_from_s) + max(0.0, read_until_s - end_s)


def unavailable(domain: str, reason: str, meter: str) -> DomainEnergy:
    """A domain without a reading."""
    return DomainEnergy(
        domain=domain, energy_j=None, provenance=Provenance.UNAVAILABLE, reason=reason, meter=meter
    )


def measured(
    domain: str, energy_j: float, bound_j: float, meter: str, reason: str | None = None
) -> DomainEnergy:
    """A domain with a reading; one that cannot be told from nothing says so."""
    if reason is None and bound_j >= energy_j:
        found = f"{units.format_energy(energy_j)} +- {units.format_energy(bound_j)}"
        reason = f"{TOO_SHORT}: {found} cannot be told from 0"
    return DomainEnergy(
        domain=domain,
        energy_j=energy_j,
        provenance=Provenance.MEASURED,
        bound_j=bound_j,
        reason=reason,
        meter=meter,
    )


class CounterMeter:
    """A set of file counters under one name."""

    def __init__(
        self, source: MeterSource, counters: Sequence[FileCounter], sampler: Scheduler, broken: dict[str, str]
    ) -> None:
        self.source = source
        self._counters = tuple(counters)
        self._broken = broken  # domain -> why it has no reading; a sum without it would be too small
        self._clock = sampler.clock
        self._period_s = min(LONGEST_GAP_S, *(counter.wrap_s / 4 for counter in counters))
        self._traced: dict[str, Mark] = {}
        sampler.add(self._sample)

    def power_w(self) -> dict[str, float]:
        """Mean power of each domain since the last call."""
        powers_w = {}
        for counter in self._counters:
            mark = counter.read(self._clock)
            last = self._traced.get(counter.domain, mark)
            self._traced[counter.domain] = mark
            since_s, now_s = last.after_s, mark.after_s
            energy_j = counter.between(last, mark, since_s, now_s, self.source.name).energy_j
            if energy_j is not None and now_s > since_s:
                powers_w[counter.domain] = energy_j / (now_s - since_s)
        return powers_w

    def _sample(self, now_s: float) -> float:
        for counter in self._counters:
            counter.read(self._clock)
        return now_s + self._period_s

    def begin(self) -> tuple[Mark, ...]:
        """Read every counter."""
        return tuple(counter.read(self._clock) for counter in self._counters)

    def end(self, mark: tuple[Mark, ...]) -> Callable[[float, float], Domains]:
        """Read every counter again."""
        ends = self.begin()
        name = self.source.name
        return lambda start_s, end_s: (
            *(
                counter.between(one, two, start_s, end_s, name)
                for counter, one, two in zip(self._counters, mark, ends, strict=True)
            ),
            *(unavailable(domain, reason, name) for domain, reason in self._broken.items()),
        )

    def close(self) -> None:
        """Nothing is held: the files are opened anew for each reading."""
