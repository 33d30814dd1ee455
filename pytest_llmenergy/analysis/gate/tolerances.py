"""Tolerances of single cells, as they are written on a command line or in pyproject.toml."""

from __future__ import annotations

import fnmatch
import math
from typing import TYPE_CHECKING

from pytest_llmenergy.analysis.gate.verdicts import Tolerance
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.units import parse_fraction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llmenergy.records import Cell


def parse_tolerances(written: Iterable[str], cells: Iterable[Cell]) -> dict[Cell, Tolerance]:
    """Read `PATTERN=SHARE` lines; the pattern is matched with a cell's label, the last that matches wins.

    Args:
        written: such as `* in 8 out *=10%`.
        cells: those there are.

    Raises:
        RequestError: a line cannot be read, or its pattern matches no cell, which would let a mistyped one
            pass for a rule.
    """
    known = list(cells)
    found: dict[Cell, Tolerance] = {}
    for line in written:
        pattern, equals, text = line.rpartition("=")
        try:
            limit = parse_fraction(text)
        except ValueError:
            limit = math.nan
        pattern = pattern.strip()
        if not equals or not pattern or not 0 <= limit < math.inf:
            raise RequestError(f"the tolerance {line!r} is not of the form CELLS=SHARE, '* in 8 out *=10%'.")
        matched = [cell for cell in known if fnmatch.fnmatchcase(cell.label, pattern)]
        if not matched:
            there = f" Cells are named like '{known[0].label}'." if known else ""
            raise RequestError(f"the tolerance {line!r} matches no cell.{there}")
        found |= dict.fromkeys(matched, Tolerance.above(limit))
    return found
