"""Evidence to verdicts: which cells are compared, how errors are shared out, what the run says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.blocks import Found, block_evidence
from pytest_llmenergy.analysis.gate.comparable import refuse_incomparable
from pytest_llmenergy.analysis.gate.evidence import Evidence, as_change, holm
from pytest_llmenergy.analysis.gate.sessions import (
    DEFAULT_SESSION_SPREAD,
    assumed_spread_evidence,
    history_evidence,
)
from pytest_llmenergy.analysis.gate.verdicts import (
    CellOutcome,
    GateReport,
    GridOutcome,
    Mode,
    Outcome,
    Rules,
    Verdict,
)
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Campaign, Cell, Provenance
from pytest_llmenergy.units import format_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmenergy.analysis.gate.readings import Reading, Session
    from pytest_llmenergy.analysis.gate.verdicts import Tolerance


def compare_sessions(
    bases: Sequence[Session], heads: Sequence[Session], rules: Rules, mode: Mode | None = None
) -> GateReport:
    """Compare head sessions with stored ones.

    Args:
        bases: the stored sessions, oldest first.
        heads: the sessions to judge; several of one commit see smaller effects.
        rules: tolerances and error rates.
        mode: `SESSIONS` assumes how sessions differ, `HISTORY` estimates it from the stored ones. None takes
            history where there is more than one stored session and no assumed spread.

    Raises:
        RequestError: nothing to compare with, or a baseline that is not comparable, naming the difference.
    """
    if not bases or not heads:
        raise RequestError("the gate needs a baseline and results to judge; one of them holds no session.")
    if mode is None:
        several = len(bases) > 1 and rules.session_spread is None
        mode = Mode.HISTORY if several else Mode.SESSIONS
    for head in heads:
        for base in bases:
            refuse_incomparable(base, head)
    if mode is Mode.HISTORY:
        found = history_evidence(bases, heads, rules.min_sessions)
        return _report(found, rules, mode, bases, heads, units=len(bases))
    spread = DEFAULT_SESSION_SPREAD if rules.session_spread is None else rules.session_spread
    found = assumed_spread_evidence(bases, heads, spread)
    report = _report(found, rules, mode, bases, heads, units=len(bases))
    return replace(
        report,
        notes=(_assumption(found, rules, spread, len(bases), len(heads)), *report.notes),
        details={"session_spread": spread},
    )


def _assumption(found: Found, rules: Rules, spread: float, bases: int, heads: int) -> str:
    """What the verdict rests on, and what it would be worth if that were wrong."""
    text = f"Assumed, not measured: unchanged sessions differ by {format_percent(spread)} (sd)."
    alpha = rules.grid_alpha / max(1, len(found.grids))
    misses = []
    for grid in found.grids.values():
        critical = max(grid.quantile(alpha) * grid.se, math.log1p(rules.grid.fail_from))
        twice = math.sqrt(grid.se**2 + 3 * spread**2 * (1 / bases + 1 / heads))
        misses.append(Evidence(estimate=critical, se=twice, df=None).p)
    if misses and spread:
        alarm = min(1.0, math.fsum(misses))
        share = format_percent(alarm, 0)
        text += f" If it were {format_percent(2 * spread)}, {share} of unchanged runs would fail."
    return f"{text} Ten stored sessions show the true spread; --session-spread states it."


def compare_blocks(blocks: Sequence[tuple[Session, Session]], rules: Rules) -> GateReport:
    """Compare blocks of base and head that were measured in turn.

    Raises:
        RequestError: fewer than two blocks, or blocks that are not comparable.
    """
    for base, head in blocks:
        refuse_incomparable(base, head)
    common = any(base.readings.keys() & head.readings.keys() for base, head in blocks)
    if len(blocks) < 2 and common:  # noqa: PLR2004 - a spread needs two
        raise RequestError("a comparison in blocks needs two of them at least.")
    bases, heads = zip(*blocks, strict=True)
    return _report(block_evidence(blocks), rules, Mode.AB, bases, heads, units=len(blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Presence:
    """A cell in the base and in the head: its latest reading, and why there is none."""

    base: Reading | None
    head: Reading | None

    @property
    def verdict(self) -> Verdict | None:
        """A verdict that needs no arithmetic; None where both were measured."""
        if self.base is None or not self.base.logs:
            return Verdict.NO_BASELINE
        return None if self.head is not None and self.head.logs else Verdict.NOT_MEASURED

    @property
    def reason(self) -> str:
        if self.verdict is Verdict.NOT_MEASURED:
            return "gone from the head" if self.head is None else (self.head.problem or "")
        if self.verdict is Verdict.NO_BASELINE:
            return "new in the head" if self.base is None else f"the base has none: {self.base.problem}"
        return ""


def _presences(bases: Sequence[Session], heads: Sequence[Session], mode: Mode) -> dict[Cell, _Presence]:
    # A stored history may begin before a cell was there, and may have lost one on purpose since: what the
    # newest stored session holds is what must still be there. Blocks are all of one time.
    must = bases if mode is Mode.AB else bases[-1:]
    cells = dict.fromkeys(cell for session in (*must, *heads) for cell in session.readings)

    def reading(cell: Cell, sessions: Sequence[Session]) -> Reading | None:
        found = [session.readings[cell] for session in sessions if cell in session.readings]
        return next((r for r in reversed(found) if r.logs), found[-1] if found else None)

    return {cell: _Presence(base=reading(cell, bases), head=reading(cell, heads)) for cell in cells}


def _report(
    found: Found,
    rules: Rules,
    mode: Mode,
    bases: Sequence[Session],
    heads: Sequence[Session],
    *,
    units: int,
) -> GateReport:
    presences = _presences(bases, heads, mode)
    compared = [cell for cell, presence in presences.items() if presence.verdict is None]
    members = Counter(cell.model for cell in compared)
    tolerances = {
        cell: rules.tolerance(cell, lone=members[cell.model] == 1, own=_own_tolerance(presences[cell]))
        for cell in compared
    }
    judge = _Judge(found, rules, tolerances, {cell for cell in compared if members[cell.model] == 1})
    cells = []
    for cell, presence in presences.items():
        early = presence.verdict
        outcome = judge.cell(cell) if early is None else Outcome(verdict=early, reason=presence.reason)
        cells.append(
            CellOutcome(
                cell=cell,
                outcome=outcome,
                base_j_per_token=None if presence.base is None else presence.base.energy_j_per_token,
                head_j_per_token=None if presence.head is None else presence.head.energy_j_per_token,
                estimated=any(
                    reading is not None and reading.provenance is Provenance.ESTIMATED
                    for reading in (presence.base, presence.head)
                ),
            )
        )
    grids = tuple(
        GridOutcome(model=model, cells=found.grid_sizes[model], outcome=judge.grid(model))
        for model in found.grids
    )
    return GateReport(
        mode=mode,
        base=bases[-1].name if len(bases) == 1 else f"{len(bases)} sessions, the latest {bases[-1].name}",
        head=heads[-1].name,
        units=units,
        cells=tuple(cells),
        grids=grids,
        false_alarm_rate=judge.false_alarm_rate,
        confidence=1 - rules.grid_alpha,
        strict=rules.strict,
        subset=rules.subset,
        notes=(*found.notes, *_notes(presences, bases, heads)),
    )


def _is_disturbed(campaign: Campaign) -> bool:
    return any(trial.counts and trial.flags for cell in campaign.cells for trial in cell.trials)


def _own_tolerance(presence: _Presence) -> float | None:
    # What the head's test says is what its author means now.
    return None if presence.head is None else presence.head.tolerance


def _notes(presences: dict[Cell, _Presence], bases: Sequence[Session], heads: Sequence[Session]) -> list[str]:
    notes = []
    if any(session.campaign.environment.fingerprint is None for session in (*bases, *heads)):
        notes.append(
            "Not every document says which machine it comes from: that they are of one is taken on trust."
        )
    lost = [cell for cell, p in presences.items() if p.verdict is Verdict.NOT_MEASURED and p.head is None]
    new = [cell for cell, p in presences.items() if p.verdict is Verdict.NO_BASELINE and p.base is None]
    gone, come = {cell.model for cell in lost}, {cell.model for cell in new}
    if len(gone) == 1 and len(come) == 1 and gone != come and len(lost) == len(new):
        notes.append(f"Was {gone.pop()} renamed to {come.pop()}? Save a baseline by the new name.")
    incomplete = [session.name for session in heads if not session.campaign.complete]
    if incomplete:
        notes.append(f"{', '.join(incomplete)} is not complete: its campaign was interrupted.")
    disturbed = [session.name for session in (*bases, *heads) if _is_disturbed(session.campaign)]
    if disturbed:
        notes.append(
            f"Something else ran beside {' and '.join(disturbed)}: the stated rate is that of sessions with "
            "the machine to themselves."
        )
    return notes


class _Judge:
    """Shares out the errors over what is compared, and says who fails."""

    def __init__(
        self, found: Found, rules: Rules, tolerances: dict[Cell, Tolerance], lone: set[Cell]
    ) -> None:
        self._found = found
        self._rules = rules
        self._tolerances = tolerances
        self._lone = lone & found.cells.keys()
        cells = [cell for cell in found.cells if cell not in self._lone]
        self._primary = len(found.grids) + len(self._lone)
        self._secondary = len(cells)
        alpha = rules.grid_alpha
        p_primary: dict[str | Cell, float] = {}
        for model, grid in found.grids.items():
            shown = as_change(grid.estimate) >= rules.grid.fail_from
            p_primary[model] = grid.p if shown else 1.0
        for cell in self._lone:
            p_primary[cell] = found.cells[cell].p(alpha, tolerances[cell].fail_from)
        p_cells: dict[str | Cell, float] = {
            cell: found.cells[cell].p(alpha, tolerances[cell].fail_from) for cell in cells
        }
        self._failed: set[str | Cell] = set()
        if found.may_fail:
            self._failed |= holm(p_primary, rules.grid_alpha)
            self._failed |= holm(p_cells, rules.cell_alpha)

    @property
    def false_alarm_rate(self) -> float:
        """The chance, at most, that an unchanged head fails: the sum over both families."""
        if not self._found.may_fail:
            return 0.0
        rules = self._rules
        return rules.grid_alpha * (self._primary > 0) + rules.cell_alpha * (self._secondary > 0)

    def cell(self, cell: Cell) -> Outcome:
        tolerance = self._tolerances[cell]
        evidence = self._found.cells.get(cell)
        if evidence is None:
            return Outcome(
                verdict=Verdict.INCONCLUSIVE,
                tolerance=tolerance,
                reason="too few sessions for a spread",
            )
        alpha = self._rules.grid_alpha
        share = (
            alpha / self._primary if cell in self._lone else self._rules.cell_alpha / max(1, self._secondary)
        )
        route = evidence.absolute
        beside = evidence.relative
        reason = ""
        if cell in self._failed and beside is not None and not route.lower(alpha) > 0:
            reason = f"{as_change(beside.estimate):+.1%} beside the rest of its grid"
        return Outcome(
            verdict=self._verdict(cell, route.upper(alpha), tolerance),
            change=as_change(route.estimate),
            ci_low=as_change(route.lower(alpha)),
            ci_high=as_change(route.upper(alpha)),
            smallest_effect=evidence.smallest_effect(alpha, share, tolerance.fail_from)
            if self._found.may_fail
            else None,
            tolerance=tolerance,
            reason=reason,
        )

    def grid(self, model: str) -> Outcome:
        evidence, tolerance = self._found.grids[model], self._rules.grid
        alpha = self._rules.grid_alpha
        share = alpha / self._primary
        return Outcome(
            verdict=self._verdict(model, evidence.upper(alpha), tolerance),
            change=as_change(evidence.estimate),
            ci_low=as_change(evidence.lower(alpha)),
            ci_high=as_change(evidence.upper(alpha)),
            smallest_effect=evidence.smallest_effect(share, tolerance.fail_from)
            if self._found.may_fail
            else None,
            tolerance=tolerance,
        )

    def _verdict(self, key: str | Cell, upper: float, tolerance: Tolerance) -> Verdict:
        if key in self._failed:
            return Verdict.FAIL
        return Verdict.PASS if as_change(upper) < tolerance.pass_below else Verdict.INCONCLUSIVE
