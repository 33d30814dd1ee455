"""Budgets: the most that a generated token of a model may cost, kept in a file under version control.

A budget is absolute: it needs no baseline and says nothing of noise, so it should leave some room.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from pytest_llmenergy.errors import DocumentError, RequestError, unreadable
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_llmenergy.analysis.gate.readings import Session
    from pytest_llmenergy.records import Cell

BUDGET_SCHEMA = "llmenergy.budget/1"
_DIGITS = 4


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that any matching cell may cost; a field left out matches all."""

    model: str
    max_energy_j_per_token: float  # per generated token
    batch_size: int | None = None
    kv_cache: bool | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    provenance: Provenance = Provenance.MEASURED  # estimates are held to a budget of estimates only

    def matches(self, cell: Cell) -> bool:
        """Whether the cell is held to it."""
        names = ("batch_size", "kv_cache", "tokens_in", "tokens_out")
        wanted = ((getattr(self, name), getattr(cell, name)) for name in names)
        return cell.model == self.model and all(w in {None, v} for w, v in wanted)


class Budgets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget file."""

    schema: str = BUDGET_SCHEMA
    budget: tuple[Budget, ...] = ()

    def to_toml(self) -> str:
        """The file's text."""
        blocks = [f"schema = {json.dumps(self.schema)}\n"]
        for budget in self.budget:
            values = {k: v for k, v in msgspec.to_builtins(budget).items() if v is not None}
            # JSON's strings, numbers and booleans are TOML's.
            lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
            blocks.append(f"[[budget]]\n{lines}")
        return "\n".join(blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOutcome:
    """One budget beside what its dearest cell cost; `cell` is None when none was measured."""

    budget: Budget
    cell: Cell | None
    energy_j_per_token: float | None

    @property
    def broken(self) -> bool:
        """Over the budget, or not measured, which keeps no budget."""
        return self.energy_j_per_token is None or self.energy_j_per_token > self.budget.max_energy_j_per_token


def read_budgets(path: Path) -> Budgets:
    """Read a budget file.

    Raises:
        DocumentError: it is missing, no TOML, not of the schema, or a budget is no positive number.
    """
    try:
        budgets = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Budgets)
    except OSError as error:
        raise unreadable(path, error, "Write one: llmenergy-report budget RESULTS --update") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise DocumentError(path, f"is not a budget file: {error}.", "See docs/gate.md.") from error
    if budgets.schema != BUDGET_SCHEMA:
        raise DocumentError(path, f"has schema {budgets.schema!r}; this version reads {BUDGET_SCHEMA!r}.")
    for budget in budgets.budget:
        if not 0 < budget.max_energy_j_per_token < float("inf"):
            raise DocumentError(path, f"the budget of {budget.model} is not a positive number.")
    if not budgets.budget:
        raise DocumentError(path, "holds no [[budget]].", "A file without one keeps everything.")
    return budgets


def hold(budgets: Budgets, session: Session) -> tuple[BudgetOutcome, ...]:
    """Hold a session to its budgets.

    Raises:
        RequestError: a budget of measured energy meets an estimate, or the other way round.
    """
    outcomes = []
    for budget in budgets.budget:
        dearest = max(_costs(budget, session), default=None, key=lambda found: found[1])
        if dearest is not None:
            provenance = session.readings[dearest[0]].provenance
            if provenance is not budget.provenance:
                raise RequestError(
                    f"the budget of {budget.model} is of {budget.provenance.value} energy, {session.name} "
                    f"has {provenance.value} energy: they are not held against each other. Is the budget of "
                    f'such energy, write provenance = "{provenance.value}" in it.'
                )
        outcomes.append(
            BudgetOutcome(
                budget=budget,
                cell=None if dearest is None else dearest[0],
                energy_j_per_token=None if dearest is None else dearest[1],
            )
        )
    return tuple(outcomes)


def _costs(budget: Budget, session: Session) -> Iterator[tuple[Cell, float]]:
    for cell, reading in session.readings.items():
        energy_j_per_token = reading.energy_j_per_token
        if budget.matches(cell) and energy_j_per_token is not None:
            yield cell, energy_j_per_token


def updated(budgets: Budgets | None, session: Session, headroom: float) -> Budgets:
    """Budgets for what the session measured: those there are, moved, and one for each model that has none.

    Args:
        budgets: as they stand; None when there is no file yet.
        session: what was measured.
        headroom: relative room above the dearest cell, 0.1 is 10 %.
    """
    moved = []
    for budget in () if budgets is None else budgets.budget:
        costs = list(_costs(budget, session))
        if not costs:
            moved.append(budget)  # not measured this time: stays
            continue
        dearest, cost = max(costs, key=lambda found: found[1])
        moved.append(
            msgspec.structs.replace(
                budget,
                max_energy_j_per_token=_rounded(cost * (1 + headroom)),
                provenance=session.readings[dearest].provenance,
            )
        )
    known = {budget.model for budget in moved}
    for model in dict.fromkeys(cell.model for cell in session.readings if cell.model not in known):
        costs = list(_costs(Budget(model=model, max_energy_j_per_token=1.0), session))
        if costs:
            dearest, cost = max(costs, key=lambda found: found[1])
            moved.append(
                Budget(
                    model=model,
                    max_energy_j_per_token=_rounded(cost * (1 + headroom)),
                    provenance=session.readings[dearest].provenance,
                )
            )
    return Budgets(budget=tuple(moved))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def difference(before: str, after: str, name: str) -> list[str]:
    """The unified difference of two budget files' texts."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{name} (before)", f"{name} (after)", lineterm="", n=3
    )
    return list(lines)
