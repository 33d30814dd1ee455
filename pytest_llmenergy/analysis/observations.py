"""What was measured, as columns: the counted trials of any number of results documents.

A machine is its fingerprint, or where a document has none (imported ones have none) the name of its system.
Trials of one cell on one machine are one cell's, whichever documents they stand in; machines are kept apart.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from pytest_llmenergy import accounting
from pytest_llmenergy.campaign import results, tidy
from pytest_llmenergy.errors import DocumentError, RequestError, require
from pytest_llmenergy.records import DomainEnergy, Environment, ModelRecord, Provenance

require("polars", feature="analysing results", extra="analysis")

import polars as pl  # noqa: E402 - this module is imported late, by who analyses results

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

ENERGIES = ("gpu_energy_j", "cpu_energy_j", "energy_j")
METRICS = (*ENERGIES, "runtime_s")
# What cells must share to be of one fit; tokens vary within it.
GROUP = ("model", "system", "machine", "n_gpus", "batch_size", "kv_cache")
_CELL = (*GROUP, "tokens_in", "tokens_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file that was read."""

    path: str
    sha256: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Cells and their counted trials."""

    cells: pl.DataFrame  # one row a cell, the columns of _CELL and `documents` (indices); id = row
    trials: pl.DataFrame  # `cell` (id), METRICS (null: unknown) and `gpu_estimated`, `cpu_estimated`
    documents: tuple[Document, ...]
    active_parameters: dict[str, int] = field(default_factory=dict)  # by model, where documents say so
    parameters: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> tuple[str, ...]:
        """Those that are known of at least one trial."""
        return tuple(name for name in METRICS if self.trials[name].null_count() < self.trials.height)

    def select(
        self,
        *,
        models: Sequence[str] = (),
        systems: Sequence[str] = (),
        batch_size: int | None = None,
        kv_cache: bool | None = None,
    ) -> Observations:
        """The cells of a selection; what is not named is not narrowed.

        Cells whose generation mode is unknown are taken to be of the one that is named.

        Raises:
            RequestError: nothing is left; the message lists what there is.
        """
        keep = pl.lit(value=True)
        for column, wanted in (("model", models), ("system", systems)):
            there = self.cells[column].unique(maintain_order=True).to_list()
            unknown = [name for name in wanted if name not in there]
            if unknown:
                raise RequestError(f"no cell is of {column} {unknown[0]!r}; there is {', '.join(there)}.")
            if wanted:
                keep &= pl.col(column).is_in(list(wanted))
        if batch_size is not None:
            keep &= pl.col("batch_size") == batch_size
        cells = self.cells
        if kv_cache is not None:
            cells = cells.with_columns(pl.col("kv_cache").fill_null(kv_cache))
            keep &= pl.col("kv_cache") == kv_cache
        kept = cells.with_row_index("cell").filter(keep)
        if kept.is_empty():
            raise RequestError(
                "no cell is left of the selection; choose a batch size and mode that were run."
            )
        number = pl.Series("to", np.arange(kept.height))
        moved = kept.select(pl.col("cell").cast(pl.Int64)).with_columns(number)
        trials = self.trials.join(moved, on="cell", how="inner", maintain_order="left")
        return Observations(
            cells=kept.drop("cell"),
            trials=trials.with_columns(pl.col("to").alias("cell")).drop("to"),
            documents=self.documents,
            active_parameters=self.active_parameters,
            parameters=self.parameters,
        )


def read(paths: Iterable[Path], *, pool: bool = False) -> Observations:
    """The counted trials of results documents, folders with one, or tables in the form of TIDY.csv.

    Args:
        paths: the documents.
        pool: take all machines for one.

    Raises:
        DocumentError: one of them cannot be read, or holds an impossible figure.
        RequestError: not one trial counts.
    """
    parts = [
        _from_tidy(path, index) if path.suffix.lower() == ".csv" else _from_results(path, index)
        for index, path in enumerate(paths)
    ]
    _refuse_twice([part.document for part in parts])
    cells = pl.concat([part.cells for part in parts])
    first = np.cumsum([0, *(part.cells.height for part in parts[:-1])])
    trials = pl.concat(
        [
            part.trials.with_columns(pl.col("cell") + int(offset))
            for part, offset in zip(parts, first, strict=True)
        ]
    )
    if trials.is_empty():
        raise RequestError(
            "no trial counts in these results; measure some, or look at why they are excluded."
        )
    if pool:
        names = " + ".join(cells["system"].unique(maintain_order=True).to_list())
        cells = cells.with_columns(pl.lit(names).alias("system"), pl.lit("pooled").alias("machine"))
    # The same cell of two documents becomes one.
    cells = cells.with_columns(pl.struct(*_CELL).rank("dense").cast(pl.Int64).alias("same") - 1)
    trials = trials.with_columns(cells["same"].gather(trials["cell"]).alias("cell"))
    merged = (
        cells.group_by("same")
        .agg(pl.col(*_CELL).first(), pl.col("document").unique().sort().alias("documents"))
        .sort("same")
        .drop("same")
    )
    return Observations(
        cells=merged,
        trials=trials,
        documents=tuple(part.document for part in parts),
        active_parameters={k: v for part in parts for k, v in part.active_parameters.items()},
        parameters={k: v for part in parts for k, v in part.parameters.items()},
    )


def _refuse_twice(documents: Sequence[Document]) -> None:
    seen: dict[str, str] = {}
    for document in documents:
        if document.sha256 in seen:
            raise RequestError(
                f"{document.path} is the same document as {seen[document.sha256]}; its trials would count "
                "twice. Give it once."
            )
        seen[document.sha256] = document.path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    cells: pl.DataFrame
    trials: pl.DataFrame
    document: Document
    active_parameters: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)


def _from_tidy(path: Path, index: int) -> _Part:
    """The same columns, without the detour through JSON."""
    frame = tidy.read_tidy(path).with_columns(machine=pl.col("system"))
    cells = frame.unique("cell", keep="first", maintain_order=True).select(_CELL)
    total = pl.when(pl.col("n_gpus") == 0).then(0.0).otherwise(pl.col("gpu_energy_j"))
    trials = frame.select(
        "cell",
        "gpu_energy_j",
        "cpu_energy_j",
        (total + pl.col("cpu_energy_j")).alias("energy_j"),
        "runtime_s",
        pl.lit(value=False).alias("gpu_estimated"),
        pl.lit(value=False).alias("cpu_estimated"),
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return _Part(
        cells=cells.with_columns(pl.lit(index, dtype=pl.Int32).alias("document")),
        trials=trials,
        document=Document(path=str(path), sha256=sha256, fingerprint=None),
    )


class _Domain(msgspec.Struct, frozen=True, gc=False):
    """What a sum needs of a `records.DomainEnergy`."""

    domain: str
    provenance: Provenance
    energy_j: float | None = None


class _Trial(msgspec.Struct, frozen=True, gc=False):
    """What a fit needs of a `records.Trial`."""

    runtime_s: float
    domains: tuple[_Domain, ...]
    warmup: bool = False
    excluded: str | None = None


class _Cell(msgspec.Struct, frozen=True):
    model: str
    system: str
    batch_size: int
    tokens_in: int
    tokens_out: int
    trials: tuple[_Trial, ...]
    n_gpus: int | None = None
    kv_cache: bool | None = None
    error: str | None = None


class _Results(msgspec.Struct, frozen=True):
    cells: tuple[msgspec.Raw, ...]  # decoded one at a time, so that a million trials never stand at once
    environment: Environment = Environment()
    models: tuple[ModelRecord, ...] = ()


def _from_results(path: Path, index: int) -> _Part:
    path, text = results.read_document(path)
    document = results.decode(path, text, _Results)
    fingerprint = document.environment.fingerprint
    sums = _Sums()
    settings: list[tuple[object, ...]] = []
    counts: list[int] = []
    decoder = msgspec.json.Decoder(_Cell)
    for number, raw in enumerate(document.cells):
        try:
            cell = decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise DocumentError(path, f"is not a results document: cell {number}: {error}.") from error
        if cell.error is not None:
            continue
        counted = sums.add(cell.trials)
        if counted:
            machine = fingerprint or cell.system
            setting = (cell.model, cell.system, machine, cell.n_gpus, cell.batch_size, cell.kv_cache)
            settings.append((*setting, cell.tokens_in, cell.tokens_out, index))
            counts.append(counted)
    schema = {
        "model": pl.String,
        "system": pl.String,
        "machine": pl.String,
        "n_gpus": pl.Int64,
        "batch_size": pl.Int64,
        "kv_cache": pl.Boolean,
        "tokens_in": pl.Int64,
        "tokens_out": pl.Int64,
        "document": pl.Int32,
    }
    cells = pl.DataFrame(settings, schema=schema, orient="row")
    trials = sums.frame().with_columns(pl.Series("cell", np.repeat(np.arange(len(counts)), counts)))
    _refuse_impossible(path, cells, trials)
    return _Part(
        cells=cells,
        trials=trials.select("cell", *METRICS, "gpu_estimated", "cpu_estimated"),
        document=Document(path=str(path), sha256=hashlib.sha256(text).hexdigest(), fingerprint=fingerprint),
        active_parameters={m.model: m.active_parameters for m in document.models if m.active_parameters},
        parameters={m.model: m.parameters for m in document.models if m.parameters},
    )


def _refuse_impossible(path: Path, cells: pl.DataFrame, trials: pl.DataFrame) -> None:
    for name in METRICS:
        least = pl.col(name) <= 0 if name == "runtime_s" else pl.col(name) < 0
        bad = trials.filter(least)
        if bad.height:
            cell = cells.row(int(bad["cell"][0]), named=True)
            raise DocumentError(
                path,
                "{model}, {tokens_in} tokens in, {tokens_out} out: ".format(**cell)
                + f"a trial has {name} {bad[name][0]}, which no call can.",
                "Mark such a trial as excluded, with the reason.",
            )


_Layout: TypeAlias = tuple[tuple[str, Provenance], ...]


def _layout(trial: _Trial) -> _Layout:
    return tuple([(domain.domain, domain.provenance) for domain in trial.domains])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Which domains enter the sums of ENERGIES, and whether the GPU's and the CPU's hold an estimate."""

    parts: tuple[tuple[int, ...], ...]
    estimated: tuple[bool, ...]


class _Sums:
    """GPU, CPU and total energy of trials: which domains enter which sum is accounting's to say."""

    def __init__(self) -> None:
        self._columns = {name: array("d") for name in METRICS}
        self._estimated = {"gpu_estimated": array("b"), "cpu_estimated": array("b")}
        self._plans: dict[_Layout, _Plan] = {}

    def add(self, trials: Iterable[_Trial]) -> int:
        """Take a cell's counted trials in; how many."""
        counted = [trial for trial in trials if not trial.warmup and trial.excluded is None]
        if not counted:
            return 0
        layout = _layout(counted[0])
        domains = [domain for trial in counted for domain in trial.domains]
        if [(domain.domain, domain.provenance) for domain in domains] == list(layout) * len(counted):
            self._add_alike(layout, counted, [domain.energy_j for domain in domains])
            return len(counted)
        for trial in counted:
            self._add_alike(_layout(trial), [trial], [domain.energy_j for domain in trial.domains])
        return len(counted)

    def _add_alike(self, layout: _Layout, trials: list[_Trial], energies_j: list[float | None]) -> None:
        """Trials with the same domains of the same provenance; energies trial after trial."""
        plan = self._plans.get(layout) or self._plan(layout)
        known = [np.nan if x is None else x for x in energies_j]
        for name, parts in zip(ENERGIES, plan.parts, strict=True):
            columns = [known[i :: len(layout)] for i in parts]
            if len(columns) > 1:
                columns = [[sum(x) for x in zip(*columns, strict=True)]]
            self._columns[name].extend(columns[0] if columns else [np.nan] * len(trials))
        self._columns["runtime_s"].extend([trial.runtime_s for trial in trials])
        for name, is_estimated in zip(self._estimated, plan.estimated, strict=True):
            self._estimated[name].extend([is_estimated] * len(trials))

    def _plan(self, layout: _Layout) -> _Plan:
        domains = tuple(
            DomainEnergy(domain=domain, provenance=provenance, energy_j=0.0) for domain, provenance in layout
        )

        def indices(chosen: Iterable[DomainEnergy]) -> tuple[int, ...]:
            wanted = {id(part) for part in chosen}
            return tuple(i for i, part in enumerate(domains) if id(part) in wanted)

        gpu, cpu = accounting.gpu_domains(domains), accounting.cpu_domains(domains)
        self._plans[layout] = plan = _Plan(
            parts=(indices(gpu), indices(cpu), indices((*gpu, *cpu))),
            estimated=tuple(any(p.provenance is Provenance.ESTIMATED for p in part) for part in (gpu, cpu)),
        )
        return plan

    def frame(self) -> pl.DataFrame:
        """The trials; NaN, which no JSON holds, stood for unknown."""
        return pl.DataFrame(
            {name: np.frombuffer(values) if values else [] for name, values in self._columns.items()},
            schema=dict.fromkeys(METRICS, pl.Float64),
        ).with_columns(
            *(pl.col(name).fill_nan(None) for name in METRICS),
            *(
                pl.Series(name, np.frombuffer(values, dtype=np.int8).astype(bool), dtype=pl.Boolean)
                for name, values in self._estimated.items()
            ),
        )
