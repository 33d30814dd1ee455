"""Cells drawn from known costs, without a campaign around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.analysis import forms
from pytest_llmenergy.analysis.cell_means import CellMeans, Group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AXIS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def drawn(
    truth: Mapping[str, float],
    *,
    seed: int = 0,
    noise: float = 0.03,
    trials: int = 4,
    kv_cache: bool | None = False,
    grid: Sequence[tuple[int, int]] | None = None,
    metric: str = "gpu_energy_j",
) -> CellMeans:
    """Cells whose trials cost what the named terms say, with relative normal noise."""
    draw = np.random.default_rng(seed)
    tokens = np.array(grid or [(t, n) for t in AXIS for n in AXIS])
    t, n = tokens[:, 0], tokens[:, 1]
    cost = forms.design(tuple(truth), t, n) @ np.array(list(truth.values()))
    values = cost[:, None] * (1 + noise * draw.standard_normal((len(cost), trials)))
    return CellMeans(
        group=Group(model="m", system="node", machine="node", n_gpus=1, batch_size=1, kv_cache=kv_cache),
        metric=metric,
        tokens_in=t,
        tokens_out=n,
        mean=values.mean(axis=1),
        deviation=values.std(axis=1, ddof=1) if trials > 1 else np.full(len(cost), np.nan),
        trials=np.full(len(cost), trials),
        estimated=False,
        left_out=0,
        documents=(),
    )
