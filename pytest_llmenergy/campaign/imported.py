"""Results documents from measurements made elsewhere.

Trials become JSON a column at a time and cells are written as they come: a million trials take seconds, and
no more memory than their columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import polars as pl

from pytest_llmenergy.accounting import ATTRIBUTED
from pytest_llmenergy.campaign import tidy
from pytest_llmenergy.campaign.results import ENERGY_METRICS, summary_of
from pytest_llmenergy.records import Campaign, CellRecord, Provenance

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

NO_VALUE = "the imported file gives no value"
_CELL_TRIALS = b'"trials":[]'
_CAMPAIGN_CELLS = b'"cells":[]'


def gpu_domain(n_gpus: int | None) -> str:
    """The domain of an imported GPU energy: one GPU's, or the sum over all that the row counts."""
    return "gpu:0" if n_gpus == 1 else "gpu:all"


def document(campaign: Campaign, trials: pl.DataFrame, *, estimated: Collection[str] = ()) -> Iterator[bytes]:
    """A results document in pieces.

    Args:
        campaign: everything but its cells.
        trials: as `tidy.read_tidy` gives them.
        estimated: the energy columns (tidy.ENERGIES) whose joules come from a model, not from a sensor.
    """
    provenance = {
        name: Provenance.ESTIMATED if name in estimated else Provenance.MEASURED for name in tidy.ENERGIES
    }
    head, _, tail = msgspec.json.encode(campaign).partition(_CAMPAIGN_CELLS)
    separator = head + b'"cells":[\n'
    for record, lines in _cells(trials, provenance):
        start, _, end = msgspec.json.encode(record).partition(_CELL_TRIALS)
        yield separator + start + b'"trials":[\n' + lines.encode() + b"\n]" + end
        separator = b",\n"
    yield b"\n]" + tail + b"\n"


def _cells(trials: pl.DataFrame, provenance: dict[str, Provenance]) -> Iterator[tuple[CellRecord, str]]:
    """Every cell without its trials, and those as lines of JSON."""
    grouped = trials.group_by(tidy.CELL, maintain_order=True).agg(
        _trial_json(provenance).str.join(",\n").alias("lines"), *tidy.REALS
    )
    for row in grouped.iter_rows():
        *setting, lines, runtimes_s, gpu_energies_j, cpu_energies_j = row
        cell = CellRecord(**dict(zip(tidy.CELL, setting, strict=True)), trials=())
        domains = [("cpu_energy_j", cpu_energies_j)]
        if cell.n_gpus != 0:
            domains.append(("gpu_energy_j", gpu_energies_j))
        totals_j = [
            None if None in parts else sum(parts) for parts in zip(*(v for _, v in domains), strict=True)
        ]
        energies_j = dict.fromkeys(ENERGY_METRICS, [None] * len(runtimes_s)) | dict(domains)
        energies_j["energy_j"] = totals_j
        basis = next(
            (name for name in ("energy_j", "gpu_energy_j") if any(v is not None for v in energies_j[name])),
            "energy_j",
        )
        used = [name for name, _ in domains] if basis == "energy_j" else [basis]
        sources = {provenance[name] for name in used}
        if None in energies_j[basis]:
            sources = {Provenance.UNAVAILABLE}
        summary = summary_of(
            runtimes_s,
            energies_j,
            basis=basis,
            provenance=sources.pop() if len(sources) == 1 else Provenance.ESTIMATED,
            tokens_generated=cell.tokens_generated,
        )
        yield msgspec.structs.replace(cell, summary=summary), lines


def _trial_json(provenance: dict[str, Provenance]) -> pl.Expr:
    """A trial's JSON text, with the fields that docs/results.md promises."""
    tokens_generated = pl.col("batch_size") * pl.col("tokens_out")
    gpu = _domain_json(
        pl.when(pl.col("n_gpus") == 1).then(pl.lit(gpu_domain(1))).otherwise(pl.lit(gpu_domain(None))),
        "gpu_energy_j",
        provenance["gpu_energy_j"],
    )
    cpu = _domain_json(pl.lit(ATTRIBUTED), "cpu_energy_j", provenance["cpu_energy_j"])
    has_gpu = pl.col("n_gpus").is_null() | (pl.col("n_gpus") != 0)
    return pl.concat_str(
        pl.lit('{"index":'),
        pl.col("trial"),
        pl.lit(',"warmup":false,"excluded":null,"runtime_s":'),
        pl.col("runtime_s"),
        pl.lit(',"repetitions":1,"tokens_generated":'),
        tokens_generated,
        pl.lit(',"domains":['),
        pl.when(has_gpu).then(pl.concat_str(gpu, pl.lit(","))).otherwise(pl.lit("")),
        cpu,
        pl.lit("]}"),
    )


def _domain_json(domain: pl.Expr, energy: str, provenance: Provenance) -> pl.Expr:
    known = pl.concat_str(
        pl.lit('","energy_j":'),
        pl.col(energy),
        pl.lit(f',"bound_j":null,"provenance":"{provenance}","reason":null}}'),
    )
    unknown = pl.lit(
        f'","energy_j":null,"bound_j":null,"provenance":"{Provenance.UNAVAILABLE}","reason":"{NO_VALUE}"}}'
    )
    return pl.concat_str(pl.lit('{"domain":"'), domain, pl.coalesce(known, unknown))
