"""What a fit is made to: the mean of each cell's counted trials, a group of cells at a time.

A group is one model on one machine with one number of GPUs, batch size and generation mode. Fits are made to
means and not to trials, since trials of one cell share whatever the form gets wrong of it: taken for
independent they would promise more than they know (docs/decisions/0020-cells-not-trials.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pytest_llmenergy.analysis.documents import GROUP
from pytest_llmenergy.analysis.energy_model import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.observations import Observations

_MEAN_OF_ABSOLUTE_NORMAL = math.sqrt(2 / math.pi)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What all cells of a fit share."""

    model: str
    system: str
    machine: str  # fingerprint, or the system's name where there is none
    n_gpus: int | None
    batch_size: int
    kv_cache: bool | None

    @property
    def label(self) -> str:
        """`mistral-7b on node, batch 32, no KV cache`."""
        cache = {True: ", KV cache", False: ", no KV cache", None: ""}[self.kv_cache]
        return f"{self.model} on {self.system}, batch {self.batch_size}{cache}"

    @property
    def fingerprint(self) -> str | None:
        """Of the machine, where its documents have one."""
        return None if self.machine in (self.system, "pooled") else self.machine


@dataclass(frozen=True, kw_only=True)
class CellMeans:
    """One metric of a group's cells, in J or s of one call."""

    group: Group
    metric: str
    tokens_in: NDArray[np.int64]
    tokens_out: NDArray[np.int64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]  # of the trials; NaN of a single one
    trials: NDArray[np.int64]
    estimated: bool  # whether any joule is an estimate
    left_out: int  # cells whose metric is unknown in a trial, or zero
    documents: tuple[int, ...]

    @cached_property
    def error_of_constant(self) -> float:
        """The left-out error in percent of one constant for all cells: what a form must beat.

        The constant is that of the least squared relative error, sum(1/y) / sum(1/y^2), without the cell.
        """
        inverse = 1 / self.mean
        others = (inverse.sum() - inverse) / ((inverse**2).sum() - inverse**2)
        return float(100 * np.abs(others * inverse - 1).mean())

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The least and the largest tokens_in, and those of tokens_out."""
        t, n = self.tokens_in, self.tokens_out
        return (int(t.min()), int(t.max())), (int(n.min()), int(n.max()))

    @cached_property
    def noise_floor_mape(self) -> float | None:
        """The mean absolute error in percent that no form could beat: the means' own noise.

        From the cells with several trials; None without one. A normal error of standard deviation s has a
        mean size of s sqrt(2 / pi).
        """
        repeated = self.trials > 1
        if not repeated.any():
            return None
        relative = self.deviation[repeated] / np.sqrt(self.trials[repeated]) / self.mean[repeated]
        return float(100 * _MEAN_OF_ABSOLUTE_NORMAL * relative.mean())


def cell_means(observations: Observations) -> Iterator[CellMeans]:
    """Every known metric of every group, groups in order."""
    known = observations.metrics()
    means = observations.trials.group_by("cell").agg(
        pl.len().alias("trials"),
        # A mean over some of the trials is no mean of the cell: unknown in one, unknown in the cell.
        *(pl.when(pl.col(name).null_count() == 0).then(pl.col(name).mean()).alias(name) for name in METRICS),
        *(pl.col(name).std().alias(f"{name} deviation") for name in METRICS),
        pl.col("gpu_estimated").any(),
        pl.col("cpu_estimated").any(),
    )
    cells = observations.cells.with_row_index("cell").with_columns(pl.col("cell").cast(pl.Int64))
    table = cells.join(means, on="cell", how="inner").sort("cell")
    columns = {name: table[name].to_numpy() for name in ("tokens_in", "tokens_out", "trials")}
    for name in METRICS:
        columns[name] = table[name].fill_null(np.nan).to_numpy()
        columns[f"{name} deviation"] = (
            table[f"{name} deviation"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        )
    for name in ("gpu_estimated", "cpu_estimated"):
        columns[name] = table[name].to_numpy()
    groups = table.select(pl.struct(*GROUP).rle().alias("run")).unnest("run")
    begin = 0
    for length, key in groups.iter_rows():
        rows = slice(begin, begin + length)
        begin += length
        group = Group(**key)
        part = {name: column[rows] for name, column in columns.items()}
        documents = {index for indices in table["documents"][rows].to_list() for index in indices}
        for metric in METRICS:
            if metric in known:
                found = _one(group, metric, part, tuple(sorted(documents)))
                if found is not None:
                    yield found


def _one(
    group: Group, metric: str, part: dict[str, NDArray[Any]], documents: tuple[int, ...]
) -> CellMeans | None:
    usable = part[metric] > 0  # NaN is not
    if not usable.any():
        return None
    gpu, cpu = bool(part["gpu_estimated"][usable].any()), bool(part["cpu_estimated"][usable].any())
    estimated = {"gpu_energy_j": gpu, "cpu_energy_j": cpu, "energy_j": gpu or cpu, "runtime_s": False}
    return CellMeans(
        group=group,
        metric=metric,
        tokens_in=part["tokens_in"][usable],
        tokens_out=part["tokens_out"][usable],
        mean=part[metric][usable],
        deviation=part[f"{metric} deviation"][usable],
        trials=part["trials"][usable],
        estimated=estimated[metric],
        left_out=int((~usable).sum()),
        documents=documents,
    )
