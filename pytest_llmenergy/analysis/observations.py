"""What was measured, as columns: the counted trials of any number of results documents.

A machine is its fingerprint, or where a document has none (imported ones have none) the name of its system.
Trials of one cell on one machine are one cell's, whichever documents they stand in; machines are kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pytest_llmenergy.analysis.documents import CELL, Document, Part, from_results, from_tidy
from pytest_llmenergy.analysis.energy_model import METRICS
from pytest_llmenergy.campaign.tidy import REPEATS
from pytest_llmenergy.errors import DocumentError, RequestError
from pytest_llmenergy.units import format_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Cells and their counted trials."""

    cells: pl.DataFrame  # one row a cell, the columns of CELL and `documents` (indices); id = row
    trials: pl.DataFrame  # `cell` (id), METRICS (null: unknown), `{gpu,cpu}_estimated`, `disturbed`
    documents: tuple[Document, ...]
    active_parameters: dict[str, int] = field(default_factory=dict)  # by model, where documents say so
    parameters: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> tuple[str, ...]:
        """Those that are known of at least one trial."""
        return tuple(name for name in METRICS if self.trials[name].null_count() < self.trials.height)

    def is_estimated(self, metric: str) -> bool:
        """Whether any joule of that metric comes from a model of the hardware."""
        parts = {
            "gpu_energy_j": ("gpu_estimated",),
            "cpu_energy_j": ("cpu_estimated",),
            "energy_j": ("gpu_estimated", "cpu_estimated"),
        }.get(metric, ())
        return any(bool(self.trials[part].any()) for part in parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to bear in mind of how they were put together."""
        notes = []
        pooled = int((self.cells["documents"].list.len() > 1).sum())
        if pooled:
            stand = "cell stands" if pooled == 1 else "cells stand"
            notes.append(f"{pooled} {stand} in several documents: their trials are taken together.")
        disturbed = self.trials.filter("disturbed")["cell"].n_unique()
        if disturbed:
            have = "has" if disturbed == 1 else "have"
            notes.append(
                f"{disturbed} of {format_count(self.cells.height, 'cell', 'cells')} {have} trials that "
                "something disturbed; `llmenergy-report summary` says what."
            )
        return tuple(notes)

    def select(
        self,
        *,
        models: Sequence[str] = (),
        systems: Sequence[str] = (),
        batch_size: int | None = None,
        kv_cache: bool | None = None,
    ) -> Observations:
        """The cells of a selection; what is not named is not narrowed.

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
        if kv_cache is not None:
            keep &= pl.col("kv_cache") == kv_cache
        kept = self.cells.with_row_index("cell").filter(keep)
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


def read(paths: Iterable[Path], *, pool: bool = False, kv_cache: bool | None = None) -> Observations:
    """The counted trials of results documents, folders with one, or tables in the form of TIDY.csv.

    Args:
        paths: the documents.
        pool: take all machines for one.
        kv_cache: the generation mode of cells that do not say.

    Raises:
        DocumentError: one of them cannot be read, holds an impossible figure, or a trial that another has.
        RequestError: not one trial counts.
    """
    parts = [
        from_tidy(path, index) if path.suffix.lower() == ".csv" else from_results(path, index)
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
    if kv_cache is not None:
        cells = cells.with_columns(pl.col("kv_cache").fill_null(kv_cache))
    _refuse_repeated(cells, trials, parts)
    if pool:
        names = " + ".join(cells["system"].unique(maintain_order=True).to_list())
        cells = cells.with_columns(pl.lit(names).alias("system"), pl.lit("pooled").alias("machine"))
    # The same cell of two documents becomes one.
    cells = cells.with_columns(pl.struct(*CELL).rank("dense").cast(pl.Int64).alias("same") - 1)
    trials = trials.drop("trial").with_columns(cells["same"].gather(trials["cell"]).alias("cell"))
    merged = (
        cells.group_by("same")
        .agg(pl.col(*CELL).first(), pl.col("document").unique().sort().alias("documents"))
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


def _refuse_repeated(cells: pl.DataFrame, trials: pl.DataFrame, parts: Sequence[Part]) -> None:
    """Refuse a trial that stands twice, by its number and its figures: a copy, or a table beside its import.

    Trials of one number that differ are other measurements of the cell, and are taken together.
    """
    shared = cells.select(CELL).is_duplicated()
    if not shared.any():
        return
    setting = cells.with_row_index("cell").filter(shared)
    setting = setting.select(pl.col("cell").cast(pl.Int64), pl.struct(*CELL).rank("dense").alias("same"))
    among = trials.with_row_index("at").join(setting, on="cell", maintain_order="left")
    identity = ("same", "trial", *METRICS)
    twice = among.filter(~pl.struct(identity).is_first_distinct()).head(1)
    if twice.is_empty():
        return
    both = among.join(twice.select(identity), on=identity, nulls_equal=True)
    places = []
    for at, cell in both.sort("at").select("at", "cell").head(2).iter_rows():
        part = parts[cells["document"][cell]]
        begin = sum(other.trials.height for other in parts[: cells["document"][cell]])
        places.append((part.document.path, part.line(at - begin)))
    (former, former_line), (path, line) = places
    told = REPEATS.format(**cells.row(twice["cell"][0], named=True), trial=twice["trial"][0])
    raise DocumentError(
        path,
        f"{'' if line is None else f'line {line}: '}{told}, which {former} has"
        f"{'' if former_line is None else f' in line {former_line}'}, with the same figures.",
        "Leave one of them out: it would count twice. A trial that was measured again has another number.",
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
