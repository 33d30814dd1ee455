"""How many calls back to back a window must hold, so that the meters are sure of its energy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llmenergy import accounting
from pytest_llmenergy.meters.counters import TOO_SHORT
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmenergy.records import DomainEnergy, Trial

LONGEST_WINDOW_S = 30.0  # no call is repeated beyond it
_GROWTH = 8  # how much longer the next window may be: a bound far above the wish says little about how far
_MARGIN = 1.25  # a bound differs from one window to the next


def bound_rel(domains: Sequence[DomainEnergy]) -> float | None:
    """The meters' error bound over the energy, of the measured domains; None where nothing is measured."""
    summed = (*accounting.gpu_domains(domains), *accounting.cpu_domains(domains))
    known = [
        (part.bound_j, part.energy_j)
        for part in summed
        if part.provenance is Provenance.MEASURED and part.bound_j is not None and part.energy_j is not None
    ]
    energy_j = sum(energy_j for _, energy_j in known)
    if not known or energy_j <= 0:
        return None
    return sum(bound_j for bound_j, _ in known) / energy_j


def repetitions_for(trial: Trial, window_error: float) -> int:
    """How many calls a window must hold for its bound to be below `window_error`, from what one held.

    The bound is of the window's edges, so its share of the energy falls as the window grows.
    """
    most = max(1, math.floor(LONGEST_WINDOW_S / trial.runtime_s)) if trial.runtime_s > 0 else 1
    rel = bound_rel(trial.domains)
    too_short = [part for part in trial.domains if (part.reason or "").startswith(TOO_SHORT)]
    # A domain without an energy has no share: the window grows until there is one. One that has an energy,
    # however little, is in the share: a part that idles must not stretch every window.
    if any(part.energy_j is None for part in too_short) or (too_short and rel is None):
        factor = float(_GROWTH)
    else:
        factor = 1.0 if rel is None else rel / window_error
    wanted = trial.repetitions if factor <= 1 else math.ceil(_MARGIN * factor * trial.repetitions)
    return max(trial.repetitions, min(wanted, _GROWTH * trial.repetitions, most))
