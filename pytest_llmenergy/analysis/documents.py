"""One document as columns: its cells, and the sums of its counted trials.

A million trials pass through here: cells are decoded one at a time into what a sum needs, and added up a
column at a time. Which domains enter which sum stays accounting's to say.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import polars as pl

from pytest_llmenergy import accounting
from pytest_llmenergy.analysis.energy_model import METRICS
from pytest_llmenergy.campaign import results, tidy
from pytest_llmenergy.errors import DocumentError
from pytest_llmenergy.records import DomainEnergy, Environment, ModelRecord, Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

ENERGIES = tuple(name for name in METRICS if name != "runtime_s")
# What cells must share to be of one fit; tokens vary within it.
GROUP = ("model", "system", "machine", "n_gpus", "batch_size", "kv_cache")
CELL = (*GROUP, "tokens_in", "tokens_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file that was read."""

    path: str
    sha256: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One document's cells and trials, `trial` their number in it; `cell` counts within it."""

    cells: pl.DataFrame
    trials: pl.DataFrame
    document: Document
    active_parameters: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    table: Path | None = None  # the file, where it has a line a trial

    def line(self, trial: int) -> int | None:
        """The line of its trial, counted from 0, where it has lines."""
        return None if self.table is None else tidy.line_of(self.table, trial)


def from_tidy(path: Path, index: int) -> Part:
    """A table in the form of TIDY.csv, without the detour through JSON.

    Raises:
        DocumentError: it cannot be read, or a line of it is not a trial.
    """
    frame = tidy.read_tidy(path).with_columns(machine=pl.col("system"))
    cells = frame.unique("cell", keep="first", maintain_order=True).select(CELL)
    total = pl.when(pl.col("n_gpus") == 0).then(0.0).otherwise(pl.col("gpu_energy_j"))
    trials = frame.select(
        "cell",
        "trial",
        "gpu_energy_j",
        "cpu_energy_j",
        (total + pl.col("cpu_energy_j")).alias("energy_j"),
        "runtime_s",
        pl.lit(value=False).alias("gpu_estimated"),
        pl.lit(value=False).alias("cpu_estimated"),
        pl.lit(value=False).alias("disturbed"),
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Part(
        cells=cells.with_columns(pl.lit(index, dtype=pl.Int32).alias("document")),
        trials=trials,
        document=Document(path=str(path), sha256=sha256, fingerprint=None),
        table=path,
    )


class _Domain(msgspec.Struct, frozen=True, gc=False):
    """What a sum needs of a `records.DomainEnergy`."""

    domain: str
    provenance: Provenance
    energy_j: float | None = None


class _Trial(msgspec.Struct, frozen=True, gc=False):
    """What a fit needs of a `records.Trial`."""

    index: int
    runtime_s: float
    domains: tuple[_Domain, ...]
    warmup: bool = False
    excluded: str | None = None
    flags: tuple[str, ...] = ()


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


def from_results(path: Path, index: int) -> Part:
    """A results document, or the one in a folder.

    Raises:
        DocumentError: it cannot be read, or holds an impossible figure.
    """
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
        counted = [trial for trial in cell.trials if not trial.warmup and trial.excluded is None]
        if counted:
            sums.add(counted)
            machine = fingerprint or cell.system
            setting = (cell.model, cell.system, machine, cell.n_gpus, cell.batch_size, cell.kv_cache)
            settings.append((*setting, cell.tokens_in, cell.tokens_out, index))
            counts.append(len(counted))
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
    return Part(
        cells=cells,
        trials=trials.select("cell", "trial", *METRICS, "gpu_estimated", "cpu_estimated", "disturbed"),
        document=Document(path=str(path), sha256=hashlib.sha256(text).hexdigest(), fingerprint=fingerprint),
        active_parameters={m.model: m.active_parameters for m in document.models if m.active_parameters},
        parameters={m.model: m.parameters for m in document.models if m.parameters},
    )


def _refuse_impossible(path: Path, cells: pl.DataFrame, trials: pl.DataFrame) -> None:
    for name in ("batch_size", "tokens_in", "tokens_out"):
        odd = cells.filter(pl.col(name) < 1)
        if odd.height:
            raise DocumentError(
                path, f"a cell of {odd['model'][0]} has {name} {odd[name][0]}.", "Give 1 or more."
            )
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


_AT_ONCE = 300  # trials that are decoded and not yet columns: they stay in the processor's cache
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
        self._waiting: list[_Trial] = []
        self._numbers = array("q")
        self._columns = {name: array("d") for name in METRICS}
        self._estimated = {"gpu_estimated": array("b"), "cpu_estimated": array("b")}
        self._disturbed = array("b")
        self._plans: dict[_Layout, _Plan] = {}

    def add(self, trials: Sequence[_Trial]) -> None:
        """Take counted trials in; many at once, since a column costs less than a cell."""
        self._waiting += trials
        if len(self._waiting) >= _AT_ONCE:
            self._take_in()

    def _take_in(self) -> None:
        trials, self._waiting = self._waiting, []
        if not trials:
            return
        layout = _layout(trials[0])
        domains = [domain for trial in trials for domain in trial.domains]
        names, provenances = zip(*layout, strict=True) if layout else ((), ())
        if [domain.domain for domain in domains] == [*names] * len(trials) and [
            domain.provenance for domain in domains
        ] == [*provenances] * len(trials):
            self._add_alike(layout, trials, domains)
            return
        for each, group in groupby(trials, key=_layout):
            alike = list(group)
            self._add_alike(each, alike, [domain for trial in alike for domain in trial.domains])

    def _add_alike(self, layout: _Layout, trials: list[_Trial], domains: list[_Domain]) -> None:
        """Trials with the same domains of the same provenance; `domains` trial after trial."""
        plan = self._plans.get(layout) or self._plan(layout)
        known = [np.nan if domain.energy_j is None else domain.energy_j for domain in domains]
        for name, parts in zip(ENERGIES, plan.parts, strict=True):
            columns = [known[i :: len(layout)] for i in parts]
            if len(columns) > 1:
                columns = [[sum(x) for x in zip(*columns, strict=True)]]
            self._columns[name].extend(columns[0] if columns else [np.nan] * len(trials))
        self._numbers.extend([trial.index for trial in trials])
        self._columns["runtime_s"].extend([trial.runtime_s for trial in trials])
        self._disturbed.extend([bool(trial.flags) for trial in trials])
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
        self._take_in()
        return pl.DataFrame(
            {name: np.frombuffer(values) if values else [] for name, values in self._columns.items()},
            schema=dict.fromkeys(METRICS, pl.Float64),
        ).with_columns(
            pl.Series("trial", np.frombuffer(self._numbers, dtype=np.int64), dtype=pl.Int64),
            *(pl.col(name).fill_nan(None) for name in METRICS),
            *(
                pl.Series(name, np.frombuffer(values, dtype=np.int8).astype(bool), dtype=pl.Boolean)
                for name, values in (*self._estimated.items(), ("disturbed", self._disturbed))
            ),
        )
