"""The results document: its codec, its summaries, its schema.

History of the format:
  llmenergy.results/1  the first.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from pytest_llmenergy import accounting, student_t
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.records import (
    PHASES,
    RESULTS_SCHEMA,
    Campaign,
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

T = TypeVar("T")
RESULTS_NAME = "results.json"
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

    def mean_of(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return student_t.mean(known) if len(known) == len(values) else None

    known = [energy_j for energy_j in energies_j[basis] if energy_j is not None]
    complete = bool(known) and len(known) == len(energies_j[basis])
    energy_j = student_t.mean(known) if complete else None
    half_width_j = student_t.half_width(known, confidence) if complete else None
    runtime_s = student_t.mean(runtimes_s)
    per_token = tokens_generated or None
    return Summary(
        runtime_s=runtime_s,
        energy_j=mean_of(energies_j["energy_j"]),
        gpu_energy_j=mean_of(energies_j["gpu_energy_j"]),
        cpu_energy_j=mean_of(energies_j["cpu_energy_j"]),
        energy_j_per_token=None if energy_j is None or per_token is None else energy_j / per_token,
        energy_j_per_token_half_width=(
            None if half_width_j is None or per_token is None else half_width_j / per_token
        ),
        energy_basis=basis if complete else None,
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


def encode(campaign: Campaign) -> bytes:
    """The document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(campaign), indent=1) + b"\n"


def read_results(path: Path) -> Campaign:
    """Read a results document.

    Raises:
        DocumentError: it is missing, no JSON, of another schema or version, or does not fit the schema.
    """
    path, text = read_document(path)
    campaign = decode(path, text, Campaign)
    return msgspec.structs.replace(campaign, cells=tuple(with_summary(cell) for cell in campaign.cells))


def read_document(path: Path) -> tuple[Path, bytes]:
    """The file of a results document, or of the one in a folder, and its content.

    Raises:
        DocumentError: it cannot be read.
    """
    try:
        return path, path.read_bytes()
    except IsADirectoryError:
        return read_document(path / RESULTS_NAME)
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror}).") from error


def decode(path: Path, text: bytes, kind: type[T]) -> T:
    """Decode a results document into its records, or into a struct of those fields a reader needs.

    Raises:
        DocumentError: it is no JSON, of another schema or version, or does not fit the schema.
    """
    try:
        document = msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_other_schema(path, text)
        raise DocumentError(path, f"is not a results document: {error}.") from error
    _refuse_other_schema(path, text)
    return document


class _SchemaOnly(msgspec.Struct):
    schema: str | None = None


def _refuse_other_schema(path: Path, text: bytes) -> None:
    try:
        schema = msgspec.json.decode(text, type=_SchemaOnly).schema
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # no JSON object at all: the caller's message says where
    if schema != RESULTS_SCHEMA:
        raise DocumentError(
            path,
            f"has schema {schema!r}; this version reads {RESULTS_SCHEMA!r}.",
            "Use the pytest-llmenergy that wrote it, or a newer one.",
        )


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all; a large one may come in pieces.

    Raises:
        RequestError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RequestError(
            f"cannot write {path} ({error.strerror}). Choose another place, or mend its permissions."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_results(path: Path, campaign: Campaign) -> None:
    """Write a results document whole or not at all."""
    write_atomically(path, encode(campaign))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a results document, made from the records themselves."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": RESULTS_SCHEMA}
    document: dict[str, Any] = json.loads(msgspec.json.encode(schema | msgspec.json.schema(Campaign)))
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write any JSON document of ours, whole or not at all; NaN is refused, unknown is null."""
    write_atomically(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
