"""A results document as the gate reads it: log energy per generated token, trial by trial, cell by cell."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llmenergy import accounting
from pytest_llmenergy.campaign.summary import energy_basis, energy_of
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_llmenergy.accounting import EnergySum
    from pytest_llmenergy.records import Campaign, Cell, CellRecord, DomainEnergy, Trial

METRICS = ("energy_j", "gpu_energy_j", "cpu_energy_j")
_SUMMARY_AGREES_WITHIN = 0.01  # hand-written summaries are rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One cell of one session."""

    logs: tuple[float, ...]  # log(J per generated token), one a counted trial; empty when not measured
    problem: str | None = None  # why there is none
    metric: str | None = None  # which sum of domains the joules are
    provenance: Provenance = Provenance.UNAVAILABLE
    sources: frozenset[tuple[str, str]] = frozenset()  # (domain without its number, meter)
    tolerance: float | None = None  # the cell's own, set where it was measured

    @property
    def level(self) -> float:
        """The session's figure: the mean over its trials, whose spread says how far to trust it."""
        return statistics.fmean(self.logs)

    @property
    def median(self) -> float:
        """A block's figure: the median of its few trials, whose spread the other blocks show."""
        return statistics.median(self.logs)

    @property
    def energy_j_per_token(self) -> float | None:
        """The (geometric) mean trial in J per generated token."""
        return math.exp(self.level) if self.logs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One results document: one run of one machine, which is the unit of every test."""

    name: str  # what messages call it
    campaign: Campaign
    readings: dict[Cell, Reading] = field(repr=False)


def read_session(campaign: Campaign, path: Path | str, metric: str | None = None) -> Session:
    """Take the energy per token out of a results document.

    Args:
        campaign: the document.
        path: what to call it in messages.
        metric: one of `METRICS`; None takes all energy, or the GPU's where that is all there is.

    Raises:
        DocumentError: an energy that is no positive number, a trial that generated other than its cell
            says, a cell that stands there twice, or a summary that contradicts its trials.
    """
    readings: dict[Cell, Reading] = {}
    for record in campaign.cells:
        if record.cell in readings:
            raise DocumentError(
                path, f"holds the cell '{record.label}' twice.", "Keep one, or name its model differently."
            )
        readings[record.cell] = _read_cell(record, path, metric)
    return Session(name=str(path), campaign=campaign, readings=readings)


def _read_cell(record: CellRecord, path: Path | str, metric: str | None) -> Reading:
    counted = [trial for trial in record.trials if trial.counts]
    if record.tokens_generated <= 0:
        raise DocumentError(path, f"'{record.label}' generates no token.", "Energy per token needs some.")
    if record.error is not None:
        return Reading(logs=(), problem=record.error)
    if not counted:
        return Reading(logs=(), problem="no trial counts" if record.trials else "it has no trials")
    basis = metric or energy_basis(counted)
    if basis not in METRICS:
        raise RequestError(f"no metric {basis!r}; choose one of {', '.join(METRICS)}.")
    energies = [energy_of(trial, basis) for trial in counted]
    unknown = sum(energy_j is None for energy_j in energies)
    if unknown:
        reasons = {part.reason for trial in counted for part in trial.domains if part.energy_j is None}
        why = "; ".join(sorted(reason for reason in reasons if reason))
        return Reading(
            logs=(),
            problem=f"{unknown} of {len(counted)} trials have no {basis}" + (f": {why}" if why else ""),
        )
    logs = tuple(
        _log_per_token(trial, energy_j, record, path)
        for trial, energy_j in zip(counted, energies, strict=True)
        if energy_j is not None
    )
    if metric is None:
        _check_summary(record, logs, path)
    tolerance = record.details.get("tolerance")
    return Reading(
        logs=logs,
        metric=basis,
        provenance=_provenance(counted, basis),
        sources=frozenset(
            (part.domain.partition(":")[0], part.meter)
            for trial in counted
            for part in _parts(trial, basis)
            if part.meter is not None
        ),
        tolerance=float(tolerance) if isinstance(tolerance, int | float) else None,
    )


def _log_per_token(trial: Trial, energy_j: float, record: CellRecord, path: Path | str) -> float:
    where = f"'{record.label}' trial {trial.index}"
    if not (math.isfinite(energy_j) and energy_j > 0):
        raise DocumentError(
            path, f"{where} has an energy of {energy_j:g} J.", "Exclude the trial, or measure it again."
        )
    tokens = record.tokens_generated if trial.tokens_generated is None else trial.tokens_generated
    if tokens != record.tokens_generated:
        raise DocumentError(
            path,
            f"{where} generated {tokens} tokens; its cell says {record.tokens_generated}.",
            "It did other work: exclude the trial, or measure it again.",
        )
    return math.log(energy_j / tokens)


def _check_summary(record: CellRecord, logs: Sequence[float], path: Path | str) -> None:
    said = None if record.summary is None else record.summary.energy_j_per_token
    found = math.fsum(math.exp(log) for log in logs) / len(logs)
    if said is not None and not math.isclose(said, found, rel_tol=_SUMMARY_AGREES_WITHIN):
        raise DocumentError(
            path,
            f"'{record.label}' is summed up as {said:g} J/token, its trials give {found:g}.",
            "One of them was changed by hand: mend it, or remove the summary.",
        )


def _parts(trial: Trial, basis: str) -> tuple[DomainEnergy, ...]:
    gpu, cpu = accounting.gpu_domains(trial.domains), accounting.cpu_domains(trial.domains)
    return {"gpu_energy_j": gpu, "cpu_energy_j": cpu, "energy_j": (*gpu, *cpu)}[basis]


def _provenance(trials: Sequence[Trial], basis: str) -> Provenance:
    sums: list[EnergySum | None] = [accounting.total(_parts(trial, basis)) for trial in trials]
    measured = all(part is not None and part.provenance is Provenance.MEASURED for part in sums)
    return Provenance.MEASURED if measured else Provenance.ESTIMATED
