"""Verdicts, and the report that holds them with what they rest on."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.records import Cell

if TYPE_CHECKING:
    from collections.abc import Mapping

GATE_SCHEMA = "llmenergy.gate/1"


class Mode(enum.StrEnum):
    """How base and head were measured, which is what decides how much a difference may mean."""

    SESSIONS = "sessions"  # one session against another: their spread is assumed
    HISTORY = "history"  # against many stored sessions: their spread is estimated
    AB = "ab"  # in turn, in blocks, in one sitting: the spread is in the blocks


class Verdict(enum.StrEnum):
    """The outcome for one cell, or for a model's grid."""

    PASS = "pass"  # noqa: S105 - an increase as large as the tolerance is excluded
    FAIL = "fail"  # an increase is shown, and it is large enough to matter
    INCONCLUSIVE = "inconclusive"  # neither
    NO_BASELINE = "no-baseline"  # new in the head
    NOT_MEASURED = "not-measured"  # in the base, gone or without energy in the head


class RunVerdict(enum.StrEnum):
    """The outcome for the run."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOTHING_COMPARED = "nothing-compared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How large an increase matters: relative, 0.05 is 5 %."""

    fail_from: float  # a shown increase fails when it is estimated to be at least this
    pass_below: float  # passing takes excluding an increase of this

    @classmethod
    def above(cls, limit: float) -> Tolerance:
        """Fail above the limit, pass below it."""
        return cls(fail_from=limit, pass_below=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The gate's settings. The defaults are those of docs/gate.md, where their error rates are printed."""

    grid: Tolerance = Tolerance(fail_from=0.01, pass_below=0.05)  # a model's geometric mean over its cells
    cell: Tolerance = Tolerance(fail_from=0.03, pass_below=0.05)
    lone: Tolerance = Tolerance(fail_from=0.02, pass_below=0.05)  # a model of one cell
    cells: Mapping[Cell, Tolerance] = field(default_factory=dict)  # single cells that differ
    grid_alpha: float = 0.01  # over all grids (and lone cells) together
    cell_alpha: float = 0.0025  # over all cells together
    session_spread: float | None = None  # assumed sd of a session's level, relative
    min_sessions: int = 10  # history below this never fails
    subset: bool = False  # the head left cells out on purpose
    strict: bool = False  # inconclusive fails

    def with_limit(self, limit: float) -> Rules:
        """The same rules where every increase above the limit, and none below it, matters."""
        every = Tolerance.above(limit)
        return replace(self, grid=every, cell=every, lone=every)

    def tolerance(self, cell: Cell, *, lone: bool, own: float | None) -> Tolerance:
        """The cell's tolerance: from the rules, else from where it was measured, else the default."""
        if cell in self.cells:
            return self.cells[cell]
        if own is not None:
            return Tolerance.above(own)
        return self.lone if lone else self.cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A verdict with the change it rests on; the bounds are one-sided, each at the confidence."""

    verdict: Verdict
    change: float | None = None  # relative: 0.05 is 5 % more energy per token
    ci_low: float | None = None
    ci_high: float | None = None
    smallest_effect: float | None = None  # the increase that would have failed in 9 of 10 runs
    tolerance: Tolerance | None = None
    reason: str = ""  # why there is no verdict, or what decided it


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutcome:
    """One cell's."""

    cell: Cell
    outcome: Outcome
    base_j_per_token: float | None = None
    head_j_per_token: float | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOutcome:
    """One model's, over all its cells."""

    model: str
    cells: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """A gate's result."""

    mode: Mode
    base: str
    head: str
    units: int  # blocks, or stored sessions
    cells: tuple[CellOutcome, ...]
    grids: tuple[GridOutcome, ...]
    false_alarm_rate: float  # at most, over the whole run, where nothing has changed
    confidence: float = 0.99  # of each bound
    strict: bool = False
    subset: bool = False
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def count(self, verdict: Verdict) -> int:
        """How many cells have it."""
        return sum(cell.outcome.verdict is verdict for cell in self.cells)

    @property
    def verdict(self) -> RunVerdict:
        """A gate must have compared something, and must not pass on a cell that has vanished."""
        outcomes = [*(c.outcome for c in self.cells), *(g.outcome for g in self.grids)]
        verdicts = {outcome.verdict for outcome in outcomes}
        if not verdicts & {Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE}:
            return RunVerdict.NOTHING_COMPARED
        lost = Verdict.NOT_MEASURED in verdicts and not self.subset
        if Verdict.FAIL in verdicts or lost:
            return RunVerdict.FAIL
        if any(self._leaves_open(outcome) for outcome in outcomes):
            return RunVerdict.INCONCLUSIVE
        # A grid's verdict speaks for its cells: each alone may be too noisy, and none looks worse.
        undecided = {g.model for g in self.grids if g.outcome.verdict is not Verdict.PASS}
        whole = {g.model for g in self.grids}
        lone = [c for c in self.cells if c.cell.model not in whole]
        open_lone = any(c.outcome.verdict is Verdict.INCONCLUSIVE for c in lone)
        return RunVerdict.INCONCLUSIVE if undecided or open_lone else RunVerdict.PASS

    @staticmethod
    def _leaves_open(outcome: Outcome) -> bool:
        """Whether an increase that would matter is seen, which alone would fail, and among many does not."""
        return (
            outcome.verdict is Verdict.INCONCLUSIVE
            and outcome.change is not None
            and outcome.ci_low is not None
            and outcome.tolerance is not None
            and outcome.change >= outcome.tolerance.fail_from
            and outcome.ci_low > 0
        )

    @property
    def exit_status(self) -> int:
        """1 for a verdict against."""
        against = {RunVerdict.FAIL, RunVerdict.NOTHING_COMPARED}
        if self.strict:
            against.add(RunVerdict.INCONCLUSIVE)
        return int(self.verdict in against)

    @property
    def smallest_effect(self) -> float | None:
        """The largest of the models': a rise over a whole grid that 9 of 10 runs would have failed."""
        whole = {grid.model for grid in self.grids}
        outcomes = [
            *(grid.outcome for grid in self.grids),
            *(cell.outcome for cell in self.cells if cell.cell.model not in whole),
        ]
        known = [o.smallest_effect for o in outcomes if o.smallest_effect is not None]
        return max(known) if known else None

    @property
    def smallest_cell_effect(self) -> float | None:
        """An increase in one cell alone, for nine in ten of the cells."""
        known = sorted(c.outcome.smallest_effect for c in self.cells if c.outcome.smallest_effect is not None)
        return known[(9 * len(known)) // 10] if known else None

    def to_document(self) -> dict[str, Any]:
        """The report as llmenergy.gate/1; relative changes, unknown is null."""
        return {
            "schema": GATE_SCHEMA,
            "verdict": self.verdict.value,
            "exit_status": self.exit_status,
            "mode": self.mode.value,
            "base": self.base,
            "head": self.head,
            "units": self.units,
            "strict": self.strict,
            "confidence": self.confidence,
            "false_alarm_rate": self.false_alarm_rate,
            "smallest_effect": _finite(self.smallest_effect),
            "smallest_cell_effect": _finite(self.smallest_cell_effect),
            "notes": list(self.notes),
            "details": self.details,
            "grids": [
                {"model": grid.model, "cells": grid.cells, **_outcome_document(grid.outcome)}
                for grid in self.grids
            ],
            "cells": [
                {
                    **{name: getattr(cell.cell, name) for name in Cell.__struct_fields__},
                    **_outcome_document(cell.outcome),
                    "base_energy_j_per_token": cell.base_j_per_token,
                    "head_energy_j_per_token": cell.head_j_per_token,
                    "provenance": "estimated" if cell.estimated else "measured",
                }
                for cell in self.cells
            ],
        }


def _outcome_document(outcome: Outcome) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict.value,
        "change": outcome.change,
        "ci_low": _finite(outcome.ci_low),
        "ci_high": _finite(outcome.ci_high),
        "smallest_effect": _finite(outcome.smallest_effect),
        "fail_from": None if outcome.tolerance is None else outcome.tolerance.fail_from,
        "pass_below": None if outcome.tolerance is None else outcome.tolerance.pass_below,
        "reason": outcome.reason,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
