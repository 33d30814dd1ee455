"""The two ways a cell's increase can be shown: by itself, or beside the rest of its model's grid.

A session shifts all its cells together (temperature, clocks, another driver state), so one cell of many that
rises alone is seen far more sharply beside the others than by itself. Both ways are tested, at half the
error each.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.evidence import Evidence, of_mean, prior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llmenergy.records import Cell

# The rest of a smaller grid is no yardstick: its median moves with the cell.
RELATIVE_MIN_CELLS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Evidence by a cell's own spread, and by a spread drawn towards that of the other cells."""

    own: Evidence
    shared: Evidence

    @property
    def estimate(self) -> float:
        """The change, in log."""
        return self.own.estimate

    def lower(self, alpha: float) -> float:
        """The lower of both bounds: sharing must not hide that a cell is noisier than the others."""
        return min(self.own.lower(alpha), self.shared.lower(alpha))

    def upper(self, alpha: float) -> float:
        """The upper of both bounds."""
        return max(self.own.upper(alpha), self.shared.upper(alpha))


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEvidence:
    """What is known of one cell's change."""

    absolute: Route
    relative: Route | None = None  # its change less the median change of its model's cells

    def p(self, alpha: float, fail_from: float) -> float:
        """The chance of this where nothing has changed; 1 where the cell must not fail anyway.

        Each way asks for its own one-sided bound at alpha to exclude zero and for an increase of `fail_from`;
        beside the others, the cell must also have risen by itself, by half of it, for a cell that stays where
        it was while the rest improves is no regression.
        """
        least = math.log1p(fail_from)
        ways: list[tuple[Route, float]] = [(self.absolute, least)]
        if self.relative is not None:
            ways.append((self.relative, least / 2))
        found = [
            route.shared.p
            for route, by_itself in ways
            if route.estimate >= least and self.absolute.estimate >= by_itself and route.lower(alpha) > 0
        ]
        return min(1.0, len(ways) * min(found)) if found else 1.0

    def smallest_effect(self, bound_alpha: float, alpha: float, fail_from: float) -> float:
        """The relative increase in this cell alone that would have failed in 9 of 10 runs."""
        least = math.log1p(fail_from)
        ways = [self.absolute] if self.relative is None else [self.absolute, self.relative]
        effects = []
        for route in ways:
            shared = route.shared
            critical = max(
                shared.quantile(alpha / len(ways)) * shared.se,
                route.own.quantile(bound_alpha) * route.own.se,
            )
            effect = shared.smallest_effect_beyond(critical, fail_from)
            if route is self.relative:
                itself = self.absolute.shared
                effect = max(effect, itself.smallest_effect_beyond(0.0, math.expm1(least / 2)))
            effects.append(effect)
        return min(effects)


def shared_routes(
    values: Mapping[Cell, Sequence[float]], weights: Mapping[Cell, float] | None = None
) -> dict[Cell, Route]:
    """A route for each cell from its changes, one a block; a cell with fewer than two is left out.

    Args:
        values: d of each block.
        weights: variance of the estimate in units of one value's variance; 1/n where it is a mean of them.
    """
    means = {cell: evidence for cell, d in values.items() if (evidence := of_mean(d)) is not None}
    per_value = {cell: (own.se**2 * len(values[cell]), own.df or 0) for cell, own in means.items()}
    spread = prior(list(per_value.values()))
    routes = {}
    for cell, own in means.items():
        weight = 1 / len(values[cell]) if weights is None else weights[cell]
        variance, df = per_value[cell]
        shared_variance, shared_df = spread.shrink(variance, df)
        routes[cell] = Route(
            own=Evidence(estimate=own.estimate, se=math.sqrt(variance * weight), df=df),
            shared=Evidence(estimate=own.estimate, se=math.sqrt(shared_variance * weight), df=shared_df),
        )
    return routes


def beside_the_rest(changes: Mapping[Cell, float]) -> dict[Cell, float]:
    """Each cell's change less the median of all; nothing for a small grid."""
    if len(changes) < RELATIVE_MIN_CELLS:
        return {}
    centre = statistics.median(changes.values())
    return {cell: d - centre for cell, d in changes.items()}
