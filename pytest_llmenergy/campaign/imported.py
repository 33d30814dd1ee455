"""Results documents from measurements made elsewhere.

Trials become JSON a column at a time and cells are written as they come: a million trials take seconds, and
no more memory than their columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from pytest_llmenergy.accounting import ATTRIBUTED
from pytest_llmenergy.campaign import tidy
from pytest_llmenergy.campaign.summary import ENERGY_METRICS, summary_of
from pytest_llmenergy.records import Campaign, CellRecord, Provenance

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pytest_llmenergy.records import Summary

NO_VALUE = "the imported file gives no value"
_CELL_TRIALS = b'"trials":[]'
_CAMPAIGN_CELLS = b'"cells":[]'
_AT_ONCE = 10_000  # trials whose text is in memory


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
    for record, lines in _cells(trials.sort("cell", maintain_order=True), provenance):
        start, _, end = msgspec.json.encode(record).partition(_CELL_TRIALS)
        yield separator + start + b'"trials":[\n' + ",\n".join(lines).encode() + b"\n]" + end
        separator = b",\n"
    yield b"\n]" + tail + b"\n"


def _cells(
    trials: pl.DataFrame, provenance: dict[str, Provenance]
) -> Iterator[tuple[CellRecord, Sequence[str]]]:
    """Every cell without its trials, and those as lines of JSON; some at a time, for the memory's sake."""
    first = (trials["cell"].diff().fill_null(1) > 0).arg_true().to_list()
    ends = [*first[1:], trials.height]
    at = 0
    while at < len(first):
        until = at
        while until < len(first) and ends[until] - first[at] <= max(_AT_ONCE, ends[at] - first[at]):
            until += 1
        part = trials.slice(first[at], ends[until - 1] - first[at])
        lines = part.select(_trial_json(provenance)).to_series().to_list()
        columns = [part[name].to_list() for name in tidy.REALS]
        settings = part.select(tidy.CELL).gather([i - first[at] for i in first[at:until]]).rows(named=True)
        for setting, begin, end in zip(settings, first[at:until], ends[at:until], strict=True):
            rows = slice(begin - first[at], end - first[at])
            cell = CellRecord(**setting, trials=())
            summary = _summary(cell, [values[rows] for values in columns], provenance)
            yield msgspec.structs.replace(cell, summary=summary), lines[rows]
        at = until


def _summary(cell: CellRecord, columns: list[list[Any]], provenance: dict[str, Provenance]) -> Summary:
    """The cell's summary from its trials' columns of tidy.REALS."""
    runtimes_s, gpu_energies_j, cpu_energies_j = columns
    parts = {"cpu_energy_j": cpu_energies_j}
    if cell.n_gpus != 0:
        parts = {"gpu_energy_j": gpu_energies_j, **parts}
    totals_j = [None if None in trial else sum(trial) for trial in zip(*parts.values(), strict=True)]
    unknown = [None] * len(runtimes_s)
    energies_j = {name: parts.get(name, unknown) for name in ENERGY_METRICS} | {"energy_j": totals_j}
    gpu_only = totals_j == unknown and energies_j["gpu_energy_j"] != unknown
    basis = "gpu_energy_j" if gpu_only else "energy_j"
    sources = {provenance[name] for name in ([basis] if gpu_only else parts)}
    estimated = Provenance.ESTIMATED in sources
    return summary_of(
        runtimes_s,
        energies_j,
        basis=basis,
        provenance=(
            Provenance.UNAVAILABLE
            if None in energies_j[basis]
            else Provenance.ESTIMATED
            if estimated
            else Provenance.MEASURED
        ),
        tokens_generated=cell.tokens_generated,
    )


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
