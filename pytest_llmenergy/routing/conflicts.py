"""Which constraints cannot hold together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def smallest_conflict(labels: Sequence[str], feasible: Callable[[frozenset[str]], bool]) -> list[str]:
    """A set of constraints that cannot hold together, none of which can be left out (a deletion filter)."""
    needed = list(dict.fromkeys(labels))
    for label in list(needed):
        rest = [other for other in needed if other != label]
        if not feasible(frozenset(rest)):
            needed = rest
    return needed


def conflict_message(labels: Sequence[str]) -> str:
    """What to tell people."""
    if len(labels) == 1:
        return f"no plan can meet {labels[0]}. Relax it."
    return f"these cannot hold together: {'; '.join(labels)}. Relax one of them."
