"""Mode `ab`: base and head measured in turn, block by block; a block's difference is the unit.

What shifts a whole process (clocks, temperature, where memory fell) is in every difference, so the spread
over blocks holds all of it and nothing has to be assumed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.evidence import Evidence, of_mean
from pytest_llmenergy.analysis.gate.routes import CellEvidence, spreads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llmenergy.analysis.gate.readings import Session
    from pytest_llmenergy.records import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The evidence of a comparison: each cell's, and each grid's of two cells or more."""

    cells: Mapping[Cell, CellEvidence]
    grids: Mapping[str, Evidence]
    grid_sizes: Mapping[str, int]
    notes: tuple[str, ...] = ()
    may_fail: bool = True


def by_model(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by model, in the order they stand."""
    models: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        models[cell.model].append(cell)
    return dict(models)


def block_evidence(blocks: Sequence[tuple[Session, Session]]) -> Found:
    """Evidence from blocks of (base, head); a cell needs two blocks that measured it in both."""
    changes: dict[Cell, dict[int, float]] = defaultdict(dict)
    for index, (base, head) in enumerate(blocks):
        for cell, before in base.readings.items():
            after = head.readings.get(cell)
            if before.logs and after is not None and after.logs:
                changes[cell][index] = after.median - before.median
    cells: dict[Cell, CellEvidence] = {}
    grids: dict[str, Evidence] = {}
    sizes: dict[str, int] = {}
    for model, members in by_model(list(changes)).items():
        found = spreads({cell: changes[cell] for cell in members}, len(blocks))
        cells |= {cell: spread.evidence() for cell, spread in found.items()}
        whole = [cell for cell in members if len(changes[cell]) == len(blocks)]
        levels = [
            math.fsum(changes[cell][k] for cell in whole) / len(whole) for k in range(len(blocks)) if whole
        ]
        grid = of_mean(levels)
        if len(whole) > 1 and grid is not None:
            grids[model], sizes[model] = grid, len(whole)
    return Found(cells=cells, grids=grids, grid_sizes=sizes)
