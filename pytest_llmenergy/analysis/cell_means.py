"""What a fit is made to: the mean of each cell's counted trials, a group of cells at a time.

A group is one model on one machine with one number of GPUs, batch size and generation mode. Fits are made to
means and not to trials, since trials of one cell share whatever the form gets wrong of it: taken for
independent they would promise more than they know (docs/decisions/0020-cells-not-trials.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pytest_llmenergy.analysis import solve
from pytest_llmenergy.analysis.observations import GROUP, METRICS, Observations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

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
        """The left-out error in percent of one constant for all cells: what a form must beat."""
        constant = solve.relative(np.ones((len(self.mean), 1)), self.mean)
        return float(100 * np.abs(constant.left_out / self.mean - 1).mean())

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
    for key, part in table.partition_by(GROUP, as_dict=True, maintain_order=True).items():
        group = Group(**dict(zip(GROUP, key, strict=True)))
        for metric in METRICS:
            if metric in known:
                found = _one(group, metric, part)
                if found is not None:
                    yield found


def _one(group: Group, metric: str, part: pl.DataFrame) -> CellMeans | None:
    usable = part.filter(pl.col(metric) > 0)
    if usable.is_empty():
        return None
    gpu, cpu = bool(usable["gpu_estimated"].any()), bool(usable["cpu_estimated"].any())
    estimated = {"gpu_energy_j": gpu, "cpu_energy_j": cpu, "energy_j": gpu or cpu, "runtime_s": False}
    documents = {index for indices in part["documents"].to_list() for index in indices}
    return CellMeans(
        group=group,
        metric=metric,
        tokens_in=usable["tokens_in"].to_numpy(),
        tokens_out=usable["tokens_out"].to_numpy(),
        mean=usable[metric].to_numpy(),
        deviation=usable[f"{metric} deviation"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        trials=usable["trials"].to_numpy(),
        estimated=estimated[metric],
        left_out=part.height - usable.height,
        documents=tuple(sorted(documents)),
    )
