"""From a cell's trials to its means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import msgspec

from pytest_llmenergy import accounting, student_t
from pytest_llmenergy.records import (
    PHASES,
    CellRecord,
    ModelRecord,
    Phase,
    PhaseSummary,
    Provenance,
    Summary,
    Trial,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ENERGY_METRICS = ("energy_j", "gpu_energy_j", "cpu_energy_j")


def energy_of(trial: Trial, metric: str) -> float | None:
    """One call's energy in J by the name of the metric: energy_j, gpu_energy_j or cpu_energy_j."""
    add = {
        "energy_j": accounting.energy,
        "gpu_energy_j": accounting.gpu_energy,
        "cpu_energy_j": accounting.cpu_energy,
    }[metric]
    found = add(trial.domains)
    return None if found is None else found.energy_j


def energy_basis(trials: Iterable[Trial]) -> str:
    """The metric that energy per token rests on: all energy, or the GPU's where that is all there is."""
    counted = [trial for trial in trials if trial.counts]
    if any(energy_of(trial, "energy_j") is not None for trial in counted):
        return "energy_j"
    if any(energy_of(trial, "gpu_energy_j") is not None for trial in counted):
        return "gpu_energy_j"
    return "energy_j"


def summarise(trials: Sequence[Trial], *, tokens_generated: int | None, confidence: float = 0.95) -> Summary:
    """The means over the counted trials, of one call; unknown where a trial's is unknown."""
    counted = [trial for trial in trials if trial.counts]
    basis = energy_basis(counted)
    sums = [
        accounting.gpu_energy(trial.domains) if basis == "gpu_energy_j" else accounting.energy(trial.domains)
        for trial in counted
    ]
    provenances = {Provenance.UNAVAILABLE if s is None else s.provenance for s in sums}
    bounds = [
        s.bound_j / abs(s.energy_j) for s in sums if s is not None and s.bound_j is not None and s.energy_j
    ]
    timed = [trial for trial in trials if trial.counts or trial.excluded == PHASES]
    summary = summary_of(
        [trial.runtime_s for trial in counted],
        {metric: [energy_of(trial, metric) for trial in counted] for metric in ENERGY_METRICS},
        basis=basis,
        provenance=next(
            (p for p in (Provenance.UNAVAILABLE, Provenance.ESTIMATED) if p in provenances or not counted),
            Provenance.MEASURED,
        ),
        bound_rel=max(bounds) if bounds and len(bounds) == len(counted) else None,
        meter_cpu_share=student_t.mean(
            [
                trial.meter_cpu_s / trial.runtime_s
                for trial in counted
                if trial.meter_cpu_s is not None and trial.runtime_s > 0
            ]
        ),
        tokens_generated=tokens_generated,
        confidence=confidence,
    )
    return msgspec.structs.replace(
        summary,
        ttft_s=student_t.mean([trial.ttft_s for trial in timed if trial.ttft_s is not None]),
        tpot_s=student_t.mean([trial.tpot_s for trial in timed if trial.tpot_s is not None]),
        phases=_phases([phase for trial in timed for phase in trial.phases]),
    )


def _phases(phases: Sequence[Phase]) -> tuple[PhaseSummary, ...]:
    """The means of prefill and of decode."""
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        groups.setdefault(phase.name, []).append(phase)
    return tuple(_phase(name, group) for name, group in groups.items())


def _phase(name: str, phases: Sequence[Phase]) -> PhaseSummary:
    # A phase has a runtime and domains as a trial has, so its sums are a trial's sums.
    as_trials = [
        Trial(index=index, runtime_s=phase.runtime_s, domains=phase.domains)
        for index, phase in enumerate(phases)
    ]
    summary = summarise(as_trials, tokens_generated=None)
    return PhaseSummary(
        name=name,
        trials=len(phases),
        runtime_s=summary.runtime_s or 0.0,
        energy_j=summary.energy_j,
        gpu_energy_j=summary.gpu_energy_j,
        cpu_energy_j=summary.cpu_energy_j,
        provenance=summary.provenance,
    )


def summary_of(
    runtimes_s: Sequence[float],
    energies_j: Mapping[str, Sequence[float | None]],
    *,
    basis: str,
    provenance: Provenance,
    tokens_generated: int | None,
    bound_rel: float | None = None,
    meter_cpu_share: float | None = None,
    confidence: float = 0.95,
) -> Summary:
    """The summary of one call, from its counted trials' figures; `energies_j` by ENERGY_METRICS."""
    # One unknown part makes a mean unknown.
    known = {metric: cast("Sequence[float]", e) for metric, e in energies_j.items() if None not in e}
    means_j = {metric: student_t.mean(energies) for metric, energies in known.items()}
    energy_j = means_j.get(basis)
    half_width_j = None if energy_j is None else student_t.half_width(known[basis], confidence)
    runtime_s = student_t.mean(runtimes_s)
    per_token = tokens_generated or None
    return Summary(
        runtime_s=runtime_s,
        energy_j=means_j.get("energy_j"),
        gpu_energy_j=means_j.get("gpu_energy_j"),
        cpu_energy_j=means_j.get("cpu_energy_j"),
        energy_j_per_token=None if energy_j is None or per_token is None else energy_j / per_token,
        energy_j_per_token_half_width=(
            None if half_width_j is None or per_token is None else half_width_j / per_token
        ),
        energy_basis=None if energy_j is None else basis,
        provenance=provenance,
        power_w=None if energy_j is None or not runtime_s else energy_j / runtime_s,
        throughput_tok_s=None if per_token is None or not runtime_s else per_token / runtime_s,
        bound_rel=bound_rel,
        meter_cpu_share=meter_cpu_share,
    )


def with_net(record: CellRecord, model: ModelRecord | None) -> CellRecord:
    """A record whose summary has the energy net of idle power, from the model's baselines.

    The baseline is the mean of those before and after; net energy may be negative.
    """
    summary = record.summary
    if summary is None or model is None or summary.energy_basis is None:
        return record
    wanted = {
        part.domain
        for trial in record.trials
        if trial.counts
        for part in (
            *accounting.gpu_domains(trial.domains),
            *(accounting.cpu_domains(trial.domains) if summary.energy_basis == "energy_j" else ()),
        )
    }
    # A baseline that lacks one of the domains is none: the rest would look like work.
    baselines = [idle["domains"] for idle in model.idle if wanted <= set(idle["domains"])]
    powers = [math.fsum(parts[name]["power_w"] for name in wanted) for parts in baselines]
    spreads = [math.hypot(*(parts[name]["spread_w"] for name in wanted)) for parts in baselines]
    gross_j = summary.energy_j if summary.energy_basis == "energy_j" else summary.gpu_energy_j
    if not powers or gross_j is None or summary.runtime_s is None:
        return record
    idle_power_w = math.fsum(powers) / len(powers)
    return msgspec.structs.replace(
        record,
        summary=msgspec.structs.replace(
            summary,
            idle_power_w=idle_power_w,
            idle_spread_w=max(spreads),
            net_energy_j=gross_j - idle_power_w * summary.runtime_s,
        ),
    )


def with_summary(record: CellRecord) -> CellRecord:
    """A record that has its summary: its own, or one made from its trials."""
    if record.summary is not None:
        return record
    summary = summarise(record.trials, tokens_generated=record.tokens_generated)
    return msgspec.structs.replace(record, summary=summary)
