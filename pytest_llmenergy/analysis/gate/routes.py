"""The two ways a cell's increase can be shown: by itself, or beside the rest of its model's grid.

A session shifts all its cells together (temperature, clocks, another driver state), so one cell of many that
rises alone is seen far more sharply beside the others than by itself. Both ways are tested, at half the
error each.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.evidence import (
    SHRINK_MIN_CELLS,
    Evidence,
    prior,
    variance,
    welch,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llmenergy.records import Cell

# Of fewer cells the median, or how far cells stray, is no yardstick: it moves with the cell.
MEDIAN_MIN_CELLS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Evidence by a cell's own spread, and by a spread drawn towards that of the other cells."""

    own: Evidence
    shared: Evidence
    floor: float = 0.0  # the largest excursion that is known to happen where nothing has changed

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
            if route.estimate >= least
            and route.estimate > route.floor
            and self.absolute.estimate >= by_itself
            and route.lower(alpha) > 0
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
                route.floor,
            )
            effect = shared.smallest_effect_beyond(critical, fail_from)
            if route is self.relative:
                itself = self.absolute.shared
                effect = max(effect, itself.smallest_effect_beyond(0.0, math.expm1(least / 2)))
            effects.append(effect)
        return min(effects)


Part = tuple[float, int]  # a variance, and the degrees of freedom it was estimated with
UNKNOWN: Part = (0.0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A cell's changes, one a block (or a stored session): where they lie and how one of them varies.

    What shifts all cells of a block together (`level`) is as well known as there are blocks, however many
    cells see it; what is left of each cell (`rest`) is known better with the other cells' help.
    """

    n: int
    estimate: float
    own: Part
    level: Part = UNKNOWN
    rest: Part | None = None  # None: too few cells to tell the level from the rest
    relative: float | None = None  # the estimate less that of the other cells
    relative_own: Part = UNKNOWN
    relative_rest: Part = UNKNOWN

    def evidence(
        self, *, heads: int = 0, trials_own: Part = UNKNOWN, trials_shared: Part = UNKNOWN
    ) -> CellEvidence:
        """The evidence for the mean of the changes.

        Args:
            heads: 0 for blocks, whose changes are independent. Else the changes are those of so many head
                sessions against each of n stored ones, and the heads vary as the stored ones do.
            trials_own: what the heads' trials say of the variance of their level, the cell alone.
            trials_shared: the same with the other cells' help.
        """
        rest = self.own if self.rest is None else self.rest
        absolute = Route(
            own=self._evidence(self.estimate, self.own, trials_own, heads),
            shared=self._evidence(self.estimate, rest, trials_shared, heads, self.level),
        )
        relative = None
        if self.relative is not None:
            relative = Route(
                own=self._evidence(self.relative, self.relative_own, trials_own, heads),
                shared=self._evidence(self.relative, self.relative_rest, trials_shared, heads),
            )
        return CellEvidence(absolute=absolute, relative=relative)

    def _evidence(
        self, estimate: float, rest: Part, trials: Part, heads: int, level: Part = UNKNOWN
    ) -> Evidence:
        of_head = 1 / heads if heads else 0.0
        parts = [(level[0] * (1 / self.n + of_head), level[1])]
        if trials[0] > rest[0] * of_head:
            # The head's trials stray more than stored sessions do: a few spiked trials are no increase.
            parts += [(rest[0] / self.n, rest[1]), trials]
        else:
            parts.append((rest[0] * (1 / self.n + of_head), rest[1]))
        found = welch(estimate, [part for part in parts if part[1] > 0], 0.0)
        return found if found.df is not None else Evidence(estimate=estimate, se=0.0, df=1)


def spreads(values: Mapping[Cell, Mapping[int, float]], n: int) -> dict[Cell, Spread]:
    """How the changes of one model's cells vary over n blocks (or stored sessions).

    Args:
        values: each cell's changes by the block's number; a cell with fewer than two is left out.
        n: how many blocks there are.
    """
    found = {
        cell: Spread(
            n=len(d), estimate=statistics.fmean(d.values()), own=(variance(list(d.values())), len(d) - 1)
        )
        for cell, d in values.items()
        if len(d) > 1
    }
    whole = [cell for cell, spread in found.items() if spread.n == n]
    if len(whole) < SHRINK_MIN_CELLS:
        return found
    many = len(whole) >= MEDIAN_MIN_CELLS
    # One cell that changed does not move the median; of few cells the mean is the better level.
    centre = statistics.median if many else statistics.fmean
    blocks = list(values[whole[0]])
    level = {k: centre([values[cell][k] for cell in whole]) for k in blocks}
    lost = len(whole) / (len(whole) - 1)  # taking the level out takes this much of the rest with it
    own = {cell: (lost * variance([values[cell][k] - level[k] for k in blocks]), n - 1) for cell in whole}
    common = (variance(list(level.values())), n - 1)
    help_of_others = prior(list(own.values()))
    for cell in whole:
        rest = help_of_others.shrink(*own[cell])
        found[cell] = replace(
            found[cell],
            level=common,
            rest=rest,
            # A mean of all cells holds the cell itself; the others' mean lies further off, and varies more.
            relative=(found[cell].estimate - statistics.fmean(level.values())) * (1.0 if many else lost),
            relative_own=(own[cell][0] * lost, own[cell][1]),
            relative_rest=(rest[0] * lost, rest[1]),
        )
    return found


def with_floors(
    evidence: Mapping[Cell, CellEvidence], changes: Mapping[Cell, Mapping[int, float]]
) -> dict[Cell, CellEvidence]:
    """Ask of every cell for more than any cell of the model did in any stored session.

    Spiked trials give a session's figure heavy tails, which ten sessions of one cell do not show and those
    of all cells do.
    """
    blocks = sorted({k for d in changes.values() for k in d})
    many = len(changes) >= MEDIAN_MIN_CELLS
    centre = statistics.median if many else statistics.fmean
    level = {k: centre([d[k] for d in changes.values() if k in d]) for k in blocks}

    def excursion(values: Mapping[Cell, Mapping[int, float]]) -> float:
        """The largest rise of one stored session above the mean of the others, over all cells."""
        return max(
            (
                (statistics.fmean(d.values()) - min(d.values())) * len(d) / (len(d) - 1)
                for d in values.values()
                if len(d) > 1
            ),
            default=0.0,
        )

    absolute = excursion(changes)
    relative = excursion({cell: {k: d[k] - level[k] for k in d} for cell, d in changes.items()})
    return {
        cell: CellEvidence(
            absolute=replace(found.absolute, floor=absolute),
            relative=None if found.relative is None else replace(found.relative, floor=relative),
        )
        for cell, found in evidence.items()
    }


def beside_the_rest(changes: Mapping[Cell, float]) -> dict[Cell, float]:
    """Each cell's change less the median of all; nothing for a small grid."""
    if len(changes) < MEDIAN_MIN_CELLS:
        return {}
    centre = statistics.median(changes.values())
    return {cell: d - centre for cell, d in changes.items()}
