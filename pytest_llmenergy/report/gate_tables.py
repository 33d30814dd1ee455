"""The gate's report where people and CI read it: terminal, Markdown, GitHub annotations."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.verdicts import Mode, RunVerdict, Verdict
from pytest_llmenergy.report.tables import WIDTH, plain_table, render
from pytest_llmenergy.units import UNKNOWN, format_energy, format_percent, percent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from pytest_llmenergy.analysis.gate.budget import BudgetOutcome
    from pytest_llmenergy.analysis.gate.verdicts import CellOutcome, GateReport, Outcome
    from pytest_llmenergy.records import Cell

SHOWN_AT_MOST = 20
_NO_BREAK = "\u00a0"
_ANNOTATED_AT_MOST = 10  # GitHub shows ten of a kind
# What a reader has to look at first.
_ORDER = (
    Verdict.FAIL,
    Verdict.NOT_MEASURED,
    Verdict.INCONCLUSIVE,
    Verdict.NO_BASELINE,
    Verdict.PASS,
)
_MODES = {
    Mode.SESSIONS: "against {units} stored {sessions}, their spread assumed",
    Mode.HISTORY: "against a history of {units} {sessions}",
    Mode.AB: "A/B in {units} blocks",
}


def headline(report: GateReport) -> str:
    """The verdict in one line."""
    counts = ", ".join(f"{count} {verdict.value}" for verdict in _ORDER if (count := report.count(verdict)))
    return f"{report.verdict.value.upper()}: {counts or 'no cells'}{_of_grids(report)}"


def _of_grids(report: GateReport) -> str:
    """What the models' grids say, where cells alone do not tell the verdict."""
    failing = [grid.model for grid in report.grids if grid.outcome.verdict is Verdict.FAIL]
    if failing and not report.count(Verdict.FAIL):
        return f"; over its whole grid {', '.join(failing)} fails"
    if report.grids and report.verdict is RunVerdict.PASS and report.count(Verdict.INCONCLUSIVE):
        return "; over its whole grid every model passes"
    return ""


def summary_lines(report: GateReport) -> list[str]:
    """What the verdict rests on, in sentences."""
    sessions = "session" if report.units == 1 else "sessions"
    lines = [
        f"Energy per generated token, {_MODES[report.mode].format(units=report.units, sessions=sessions)}.",
        f"base: {report.base}",
        f"head: {report.head}",
    ]
    if report.false_alarm_rate > 0:
        lines.append(
            f"False alarms: at most {percent(report.false_alarm_rate):g} % of runs where nothing has changed."
        )
    if report.smallest_effect is not None:
        cell = report.smallest_cell_effect
        in_one = "" if cell is None or not report.grids else f", in one cell alone {_effect(cell)}"
        lines.append(
            f"Smallest effect seen 9 times in 10: {_effect(report.smallest_effect)} over a model{in_one}."
        )
    lines += report.notes
    if report.verdict is RunVerdict.NOTHING_COMPARED:
        lines.append(
            "No cell is in both with an energy: a gate that compared nothing fails. Measure the baseline's "
            "cells, or save a new baseline."
        )
    if report.count(Verdict.NOT_MEASURED) and not report.subset:
        lines.append(
            "Cells of the base that the head did not measure fail the gate; --subset (pytest: "
            "--llm-energy-subset) says that they were left out on purpose."
        )
    return lines


def _effect(effect: float) -> str:
    return f"{format_percent(effect)}" if math.isfinite(effect) else "none"


def gate_lines(report: GateReport, *, every_cell: bool = False) -> list[str]:
    """The report for a terminal of 80 columns."""
    tables: list[Table | str] = []
    cells, rest = _selected(report, every_cell=every_cell)
    if report.grids:
        table = plain_table("over each model's cells", "model", "cells", *_columns(report), left=1)
        for grid in report.grids:
            table.add_row(grid.model, str(grid.cells), *_figures(grid.outcome))
        tables.append(table)
    shown = [cell for cell in cells if cell.outcome.change is not None]
    for title, group in _by_setting(shown).items():
        table = plain_table(title, "in", "out", "base", "head", *_columns(report))
        for cell in group:
            table.add_row(
                str(cell.cell.tokens_in),
                str(cell.cell.tokens_out),
                format_energy(cell.base_j_per_token),
                format_energy(cell.head_j_per_token),
                *_figures(cell.outcome),
            )
        tables.append(table)
    tables += [f"{c.cell.label}: {c.outcome.reason}" for c in shown if c.outcome.reason]
    tables += [_bare(cell) for cell in cells if cell.outcome.change is None]
    if rest:
        tables.append(f"... and {rest} (--all, and the JSON, have every cell)")
    if any(cell.estimated for cell in report.cells):
        tables.append("Energies are estimates of a model of the hardware, on both sides.")
    return [*render(tables), "", *_wrapped(summary_lines(report)), "", headline(report)]


def _wrapped(sentences: Iterable[str]) -> list[str]:
    """Lines of 80 columns that leave a figure and its unit together."""
    return [
        line.replace(_NO_BREAK, " ")
        for sentence in sentences
        for line in textwrap.wrap(sentence.replace(" %", f"{_NO_BREAK}%"), WIDTH, break_on_hyphens=False)
    ]


def _columns(report: GateReport) -> tuple[str, str, str]:
    return "change", f"{percent(report.confidence):g} % bounds", "verdict"


def _figures(outcome: Outcome) -> tuple[str, str, str]:
    return _signed(outcome.change), _bounds(outcome), outcome.verdict.value


def _bare(cell: CellOutcome) -> str:
    reason = f": {cell.outcome.reason}" if cell.outcome.reason else ""
    return f"{cell.outcome.verdict.value}  {cell.cell.label}{reason}"


def _signed(change: float | None) -> str:
    if change is None:
        return UNKNOWN
    return f"{'+' if change >= 0 else ''}{format_percent(change)}" if math.isfinite(change) else "unbounded"


def _bounds(outcome: Outcome) -> str:
    if outcome.ci_low is None or outcome.ci_high is None:
        return UNKNOWN
    return f"{_signed(outcome.ci_low)} .. {_signed(outcome.ci_high)}"


def _selected(report: GateReport, *, every_cell: bool) -> tuple[list[CellOutcome], str]:
    """The cells to show, worst first, and what is left out in words."""
    ordered = sorted(
        report.cells,
        key=lambda cell: (_ORDER.index(cell.outcome.verdict), -(cell.outcome.change or 0.0)),
    )
    if every_cell:
        return ordered, ""
    notable = [cell for cell in ordered if cell.outcome.verdict is not Verdict.PASS]
    if not notable and len(ordered) <= SHOWN_AT_MOST:
        return ordered, ""
    shown = notable[:SHOWN_AT_MOST]
    left = ordered[len(shown) :]  # those that pass stand last
    words = [
        f"{count} {verdict.value}"
        for verdict in _ORDER
        if (count := sum(cell.outcome.verdict is verdict for cell in left))
    ]
    return shown, ", ".join(words)


def _by_setting(cells: Iterable[CellOutcome]) -> dict[str, list[CellOutcome]]:
    groups: dict[str, list[CellOutcome]] = {}
    for cell in cells:
        groups.setdefault(_setting(cell.cell), []).append(cell)
    return groups


def _setting(cell: Cell) -> str:
    cache = {True: ", KV cache", False: ", no KV cache", None: ""}[cell.kv_cache]
    return f"{cell.model} on {cell.system}, batch {cell.batch_size}{cache}, J/token"


_SIGNS = {
    RunVerdict.PASS: "✅",
    RunVerdict.FAIL: "❌",
    RunVerdict.INCONCLUSIVE: "⚠️",
    RunVerdict.NOTHING_COMPARED: "❌",
}


def gate_markdown(report: GateReport) -> str:
    """The report as Markdown, for a job's summary page or a comment."""
    lines = [f"## {_SIGNS[report.verdict]} Energy per token: {headline(report)}", ""]
    if report.grids:
        lines += [f"| model | cells | {' | '.join(_columns(report))} |", "|---|--:|--:|--:|---|"]
        lines += [
            f"| {_escaped(grid.model)} | {grid.cells} | {' | '.join(_figures(grid.outcome))} |"
            for grid in report.grids
        ]
        lines.append("")
    cells, rest = _selected(report, every_cell=False)
    if cells:
        lines += [
            f"| cell | base | head | {' | '.join(_columns(report))} |",
            "|---|--:|--:|--:|--:|---|",
        ]
        for cell in cells:
            reason = f" ({_escaped(cell.outcome.reason)})" if cell.outcome.reason else ""
            lines.append(
                f"| {_escaped(cell.cell.label)} | {format_energy(cell.base_j_per_token)} | "
                f"{format_energy(cell.head_j_per_token)} | {' | '.join(_figures(cell.outcome))}{reason} |"
            )
        lines.append("")
    if rest:
        lines += [f"... and {rest}.", ""]
    lines += [f"- {_escaped(line)}" for line in summary_lines(report)]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def workflow_commands(report: GateReport) -> list[str]:
    """Workflow commands that GitHub shows beside the change; failures first."""
    lines = []
    against = report.exit_status != 0
    cells, _ = _selected(report, every_cell=False)
    for cell in cells:
        outcome = cell.outcome
        if outcome.verdict is Verdict.FAIL:
            text = f"{_signed(outcome.change)} J/token ({_bounds(outcome)})"
        elif outcome.verdict is Verdict.NOT_MEASURED and not report.subset:
            text = f"not measured: {outcome.reason}"
        else:
            continue
        lines.append(_command("error", "Energy per token", f"{cell.cell.label}: {text}"))
    lines = lines[:_ANNOTATED_AT_MOST]
    lines += [
        _command(
            "error",
            "Energy per token",
            f"{grid.model} over {grid.cells} cells: {_signed(grid.outcome.change)} J/token "
            f"({_bounds(grid.outcome)})",
        )
        for grid in report.grids
        if grid.outcome.verdict is Verdict.FAIL
    ]
    if report.verdict is RunVerdict.INCONCLUSIVE:
        lines.append(_command("error" if against else "warning", "Energy gate", headline(report)))
    elif report.verdict is RunVerdict.NOTHING_COMPARED:
        lines.append(_command("error", "Energy gate", "nothing was compared"))
    elif report.verdict is RunVerdict.PASS:
        lines.append(_command("notice", "Energy gate", headline(report)))
    return lines


def _command(kind: str, title: str, text: str) -> str:
    """Escapes as GitHub's workflow commands ask for."""
    for character, escape in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(character, escape)
    return f"::{kind} title={title}::{text}"


def budget_lines(outcomes: Iterable[BudgetOutcome]) -> list[str]:
    """Budgets beside what was measured, for a terminal of 80 columns."""
    table = plain_table(
        "budgets, J per generated token", "model", "budget", "dearest cell", "verdict", left=1
    )
    over = []
    for outcome in outcomes:
        budget = outcome.budget
        verdict = "kept"
        if outcome.cell is None:
            verdict = "not measured"
        elif outcome.broken:
            verdict = "over"
            over.append(f"over budget: {outcome.cell.label}")
        limit, cost = budget.max_energy_j_per_token, outcome.energy_j_per_token
        table.add_row(budget.model, format_energy(limit), format_energy(cost), verdict)
    return [*render([table]), *over]
