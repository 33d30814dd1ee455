"""Stored sessions as the baseline: one, whose spread has to be assumed, or many, whose spread is seen.

Trials of one session share its level, so more of them say nothing about the next session: the unit is the
session. docs/decisions/0040-the-unit-is-the-session.md has the figures.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.blocks import Found, by_model
from pytest_llmenergy.analysis.gate.evidence import MAX_DF, Evidence, Prior, prior, variance, welch
from pytest_llmenergy.analysis.gate.routes import (
    UNKNOWN,
    CellEvidence,
    Part,
    Route,
    beside_the_rest,
    spreads,
    with_floors,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmenergy.analysis.gate.readings import Reading, Session
    from pytest_llmenergy.records import Cell

# The one published figure for whole runs found is 0.83 % (energy-bench, an L40S); rounded up.
DEFAULT_SESSION_SPREAD = 0.01
# A spread by the median absolute deviation: its scale and efficiency for normal values.
_MAD_SCALE = 1.4826
_MAD_EFFICIENCY = 0.37
_NO_PRIOR = Prior(variance=0.0, df=0)


def _measured_in(cell: Cell, sessions: Sequence[Session]) -> list[Reading]:
    return [
        reading
        for session in sessions
        if (reading := session.readings.get(cell)) is not None and reading.logs
    ]


def _common(bases: Sequence[Session], heads: Sequence[Session]) -> list[Cell]:
    seen = dict.fromkeys(cell for session in heads for cell in session.readings)
    return [cell for cell in seen if _measured_in(cell, bases) and _measured_in(cell, heads)]


def assumed_spread_evidence(bases: Sequence[Session], heads: Sequence[Session], spread: float) -> Found:
    """Evidence where a session's level is assumed to vary by `spread` (relative sd), alike for all its cells.

    The spread of trials is estimated and added; how far cells stray from each other is seen in the grid.
    """
    cells: dict[Cell, CellEvidence] = {}
    grids: dict[str, Evidence] = {}
    sizes: dict[str, int] = {}
    blind = 0
    for model, members in by_model(_common(bases, heads)).items():
        priors = [_trial_prior(session, members) for session in (*bases, *heads)]
        changes: dict[Cell, float] = {}
        trial: dict[Cell, Part] = {}
        session_variance: dict[Cell, float] = {}
        for cell in members:
            before, after = _measured_in(cell, bases), _measured_in(cell, heads)
            changes[cell] = statistics.fmean(r.level for r in after) - statistics.fmean(
                r.level for r in before
            )
            session_variance[cell] = spread**2 * (1 / len(before) + 1 / len(after))
            trial[cell] = _trial_variance(cell, bases, heads, priors)
        blind += sum(df == 0 for _, df in trial.values())
        rest = beside_the_rest(changes)
        strays = _strays(changes, rest)
        alone = [_NO_PRIOR] * len(priors)
        for cell in members:
            own = max(_trial_variance(cell, bases, heads, alone), strays[cell])
            shared = max(trial[cell], strays[cell])
            cells[cell] = CellEvidence(
                absolute=_route(changes[cell], own, shared, session_variance[cell]),
                relative=_route(rest[cell], own, shared, 0.0) if cell in rest else None,
            )
        if len(members) > 1:
            n = len(members)
            parts = [(own / n**2, df) for own, df in trial.values() if df]
            grids[model] = welch(statistics.fmean(changes.values()), parts, max(session_variance.values()))
            sizes[model] = n
    notes = []
    if blind:
        notes.append(
            f"{blind} cells have one trial a session: how trials vary there is unknown, and left out."
        )
    return Found(cells=cells, grids=grids, grid_sizes=sizes, notes=tuple(notes))


def _strays(changes: dict[Cell, float], rest: dict[Cell, float]) -> dict[Cell, Part]:
    """How far cells stray from each other where nothing has changed: what drifts within a session shows here.

    Of many cells the median deviation from their median. Of few, for each the variance of the others, so
    that one cell that rose does not hide itself.
    """
    if rest:
        deviation = _MAD_SCALE * statistics.median(abs(d) for d in rest.values())
        return dict.fromkeys(changes, (deviation**2, max(1, int(_MAD_EFFICIENCY * (len(rest) - 1)))))
    found = {}
    for cell in changes:
        others = [d for other, d in changes.items() if other != cell]
        found[cell] = (variance(others), len(others) - 1) if len(others) > 1 else UNKNOWN
    return found


def _route(estimate: float, own: Part, shared: Part, assumed: float) -> Route:
    alone, helped = (welch(estimate, [part] if part[1] else [], assumed) for part in (own, shared))
    return Route(own=alone, shared=helped)


def _trial_prior(session: Session, members: Sequence[Cell]) -> Prior:
    readings = [reading for cell in members if (reading := session.readings.get(cell)) is not None]
    return prior([(variance(r.logs), len(r.logs) - 1) for r in readings if len(r.logs) > 1])


def _trial_variance(
    cell: Cell, bases: Sequence[Session], heads: Sequence[Session], priors: Sequence[Prior]
) -> Part:
    """The variance of a cell's change that its trials bring, with its degrees of freedom (0: unknown)."""
    groups = ((bases, priors[: len(bases)]), (heads, priors[len(bases) :]))
    parts: list[Part] = []
    for sessions, theirs in groups:
        count = len(_measured_in(cell, sessions))
        for session, spread in zip(sessions, theirs, strict=True):
            reading = session.readings.get(cell)
            if reading is None or not reading.logs:
                continue
            n = len(reading.logs)
            own, df = spread.shrink(variance(reading.logs), n - 1)
            if df == 0:
                return UNKNOWN
            parts.append((own / n / count**2, df))
    total = welch(0.0, parts, 0.0)
    return total.se**2, MAX_DF if total.df is None else total.df


def history_evidence(bases: Sequence[Session], heads: Sequence[Session], min_sessions: int) -> Found:
    """Evidence against stored sessions: Student's t on s^2 (1/H + 1/B), with s over the B stored sessions."""
    cells: dict[Cell, CellEvidence] = {}
    grids: dict[str, Evidence] = {}
    sizes: dict[str, int] = {}
    short = 0
    for model, everything in by_model(_common(bases, heads)).items():
        # A cell that few sessions hold would make the spread of the others' sum; it is judged by itself.
        members = [cell for cell in everything if len(_measured_in(cell, bases)) >= min_sessions]
        short += len(everything) - len(members)
        if len(bases) < min_sessions:
            members, short = everything, 0
        cells |= _history_cells(members, bases, heads)
        centres = {cell: statistics.median(r.level for r in _measured_in(cell, bases)) for cell in members}
        if len(members) > 1:
            before, after = (
                [level for s in sessions if (level := _session_level(s, centres)) is not None]
                for sessions in (bases, heads)
            )
            if len(before) > 1 and after:
                grids[model] = Evidence(
                    estimate=statistics.fmean(after) - statistics.fmean(before),
                    se=math.sqrt(variance(before) * (1 / len(before) + 1 / len(after))),
                    df=len(before) - 1,
                )
                sizes[model] = len(members)
    notes = []
    may_fail = len(bases) >= min_sessions
    if not may_fail:
        notes.append(
            f"{len(bases)} stored sessions: a history needs {min_sessions} before it may fail. Save more "
            "(--llm-energy-save), or give --session-spread to compare under an assumed spread."
        )
    if short:
        notes.append(f"{short} cells stand in fewer than {min_sessions} stored sessions and cannot fail yet.")
    return Found(cells=cells, grids=grids, grid_sizes=sizes, notes=tuple(notes), may_fail=may_fail)


def _session_level(session: Session, centres: dict[Cell, float]) -> float | None:
    """How far a session's cells lie above the usual, on average."""
    shifts = [
        reading.level - centre
        for cell, centre in centres.items()
        if (reading := session.readings.get(cell)) is not None and reading.logs
    ]
    return statistics.fmean(shifts) if shifts else None


def _history_cells(
    members: Sequence[Cell], bases: Sequence[Session], heads: Sequence[Session]
) -> dict[Cell, CellEvidence]:
    """Each cell's change against every stored session: the mean is the estimate."""
    changes: dict[Cell, dict[int, float]] = {}
    for cell in members:
        head = statistics.fmean(r.level for r in _measured_in(cell, heads))
        changes[cell] = {
            k: head - reading.level
            for k, base in enumerate(bases)
            if (reading := base.readings.get(cell)) is not None and reading.logs
        }
    priors = [_trial_prior(session, members) for session in heads]
    alone = [_NO_PRIOR] * len(heads)
    found = {
        cell: spread.evidence(
            heads=len(_measured_in(cell, heads)),
            trials_own=_trial_variance(cell, (), heads, alone),
            trials_shared=_trial_variance(cell, (), heads, priors),
        )
        for cell, spread in spreads(changes, len(bases)).items()
    }
    return with_floors(found, changes)
