"""Power with nothing to do: what a model costs by being loaded, and how steady that is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_llmenergy.meters.window import Meters, Window
    from pytest_llmenergy.records import DomainEnergy

WINDOWS = 5
_DRIFT_SPREADS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePower:
    """Mean power of a domain over some windows without work, and the standard deviation of a window's."""

    power_w: float
    spread_w: float
    provenance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A baseline; a domain that gave no reading is not in it."""

    runtime_s: float
    domains: Mapping[str, IdlePower]
    flags: tuple[str, ...] = ()

    def record(self, when: str) -> dict[str, Any]:
        """As it stands in the results: power_w, spread_w and provenance by domain."""
        return {
            "when": when,
            "runtime_s": self.runtime_s,
            "domains": {
                domain: {"power_w": idle.power_w, "spread_w": idle.spread_w, "provenance": idle.provenance}
                for domain, idle in self.domains.items()
            },
            "flags": list(self.flags),
        }


def measure_idle(
    meters: Meters, seconds: float, *, windows: int = WINDOWS, sleep: Callable[[float], None] = time.sleep
) -> Idle:
    """Meter `windows` windows without work, `seconds` in all."""
    closed: list[Window] = []
    for _ in range(windows):
        with meters.window("idle") as window:
            sleep(seconds / windows)
        closed.append(window)
    # Read when all are closed: some sources know a window's energy a little later.
    measured = [(window.runtime_s or 0.0, window.domains) for window in closed]
    return Idle(
        runtime_s=sum(runtime_s for runtime_s, _ in measured),
        domains=_by_domain(measured),
        flags=tuple(dict.fromkeys(flag for window in closed for flag in window.flags)),
    )


def _by_domain(measured: Sequence[tuple[float, tuple[DomainEnergy, ...]]]) -> dict[str, IdlePower]:
    powers_w: dict[str, list[float]] = {}
    provenance: dict[str, str] = {}
    for runtime_s, domains in measured:
        for part in domains:
            if part.energy_j is not None and runtime_s > 0:
                powers_w.setdefault(part.domain, []).append(part.energy_j / runtime_s)
                provenance[part.domain] = part.provenance.value
    found = {}
    for domain, values_w in powers_w.items():
        if len(values_w) < len(measured):
            continue  # a window of it is missing: the rest is no baseline
        mean_w = math.fsum(values_w) / len(values_w)
        freedom = max(1, len(values_w) - 1)
        spread_w = math.sqrt(math.fsum((value_w - mean_w) ** 2 for value_w in values_w) / freedom)
        found[domain] = IdlePower(power_w=mean_w, spread_w=spread_w, provenance=provenance[domain])
    return found


def drift(before: Idle, after: Idle) -> tuple[str, ...]:
    """The domains whose idle power changed by more than three times its spread, in words."""
    found = []
    for domain, then in before.domains.items():
        now = after.domains.get(domain)
        if now is None:
            continue
        spread_w = math.hypot(then.spread_w, now.spread_w)
        if abs(now.power_w - then.power_w) > max(_DRIFT_SPREADS * spread_w, 1e-9 * abs(then.power_w)):
            found.append(
                f"{domain}: idle power went from {then.power_w:.1f} W to {now.power_w:.1f} W "
                f"(spread {spread_w:.1f} W)"
            )
    return tuple(found)
