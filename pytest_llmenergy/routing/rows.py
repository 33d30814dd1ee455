"""Routing under rows that weigh queries differently: what such a program is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """lower <= sum of weights times queries <= upper, over some options; a label for people."""

    label: str
    options: tuple[int, ...]
    weights: Floats  # (len(options), C)
    lower: float | None = None
    upper: float | None = None
    instance_of: int | None = None  # then upper is that of one instance of this model


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """How many instances of each model there may be: gpus_each[k] GPUs an instance, budget GPUs in all."""

    gpus_each: tuple[int, ...]
    budget: int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassProgram:
    """Classes of queries to options (models, or models in time windows), under rows."""

    costs: Floats  # (J, C); infinite where an option is not allowed
    counts: Ints  # (C,)
    rows: tuple[Row, ...]
    hosting: Hosting | None = None
    # Costs as they are without what forbids options, and what that is called; for telling why nothing fits.
    free_costs: Floats | None = None
    forbids: str = ""
