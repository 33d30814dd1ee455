"""Cells of two settings: one arm keeps a KV cache, the other does not, and they are to be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from pytest_llmenergy.records import Cell

if TYPE_CHECKING:
    from pytest_llmenergy.analysis.gate.readings import Session


def align(base: Session, head: Session) -> tuple[Session, dict[str, tuple[object, object]]]:
    """Name the head's cells as the base's where a field has one value in each and the two differ.

    Returns:
        The head, and the fields that were compared across: name to (base's value, head's value).
    """
    across: dict[str, tuple[object, object]] = {}
    for name in Cell.__struct_fields__:
        before, after = ({getattr(cell, name) for cell in session.readings} for session in (base, head))
        if len(before) == len(after) == 1 and before != after:
            across[name] = (before.pop(), after.pop())
    changes = {name: values[0] for name, values in across.items()}
    readings = {msgspec.structs.replace(cell, **changes): r for cell, r in head.readings.items()}
    return replace(head, readings=readings), across
