"""The arguments of the `llmenergy` marker: a test's budget, its cells' tolerance, the sweep it runs over.

A test may have several markers: its parameter set's, its own, its class's, its module's. Each argument is
taken from the nearest that states it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmenergy.units import format_energy, parse_fraction

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_llmenergy.records import Provenance

_NAME = "llmenergy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One thing that a test has measured, as its budget sees it: energies in J."""

    label: str
    energy_j: float | None  # of one call, or of the one window
    provenance: Provenance
    is_gpu_alone: bool = False  # the CPU's part is unknown
    is_window: bool = False
    half_width_j: float | None = None  # of energy_j
    energy_j_per_token: float | None = None
    half_width_j_per_token: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a test may cost."""

    max_j_per_token: float | None = None
    max_energy_j: float | None = None

    @classmethod
    def of(cls, node: pytest.Item) -> Budget | None:
        """The budget of a test; None where no marker states one.

        Raises:
            RequestError: a marker makes no sense.
        """
        check(node)
        limits = {name: _argument(node, name) for name in cls.__slots__}
        return None if set(limits.values()) == {None} else cls(**limits)

    def broken_by(self, measured: Sequence[Measured]) -> str | None:
        """Why the budget does not hold, in one message; a budget nothing was measured for does not hold."""
        if not measured:
            return "the test has an energy budget but measured nothing with the `energy` fixture"
        return "\n".join(reason for one in measured for reason in self._reasons(one)) or None

    def _reasons(self, one: Measured) -> Iterator[str]:
        if self.max_j_per_token is not None:
            if one.energy_j_per_token is None:
                why = (
                    "no tokens are known: pass tokens_out="
                    if one.energy_j is not None
                    else "it was not metered"
                )
                yield f"{one.label}: energy per token is unknown ({why}), so its budget cannot be checked"
            elif one.energy_j_per_token > self.max_j_per_token:
                figure = _figure(one.energy_j_per_token, one.half_width_j_per_token)
                yield _over(one, f"{figure} per generated token", self.max_j_per_token)
        if self.max_energy_j is not None:
            if one.energy_j is None:
                yield f"{one.label}: energy is unknown, so its budget cannot be checked"
            elif one.energy_j > self.max_energy_j:
                of = "in this window" if one.is_window else "per call"
                yield _over(one, f"{_figure(one.energy_j, one.half_width_j)} {of}", self.max_energy_j)


def _figure(energy_j: float, half_width_j: float | None) -> str:
    spread = "" if half_width_j is None else f" ± {format_energy(half_width_j)}"
    return f"{format_energy(energy_j)}{spread}"


def _over(one: Measured, figure: str, budget_j: float) -> str:
    from pytest_llmenergy.records import Provenance

    notes = []
    if one.provenance is not Provenance.MEASURED:
        notes.append("an estimate, not a measurement")
    if one.is_gpu_alone:
        notes.append("the energy of the GPU alone")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"{one.label}: {figure} is over the budget of {format_energy(budget_j)}{note}"


def check(node: pytest.Item) -> None:
    """Look at every marker of a test, also at those that a nearer one outdoes.

    Raises:
        RequestError: an argument is unknown, a limit is no positive number, or a tolerance is no share.
    """
    from pytest_llmenergy.errors import RequestError

    known = {*Budget.__slots__, "sweep", "tolerance"}
    for marker in _markers(node):
        unknown = sorted(set(marker.kwargs) - known)
        if marker.args or unknown:
            wrong = ", ".join(unknown) or "positional arguments"
            raise RequestError(f"@pytest.mark.llmenergy takes {', '.join(sorted(known))}, not {wrong}")
        for name in Budget.__slots__:
            limit = marker.kwargs.get(name)
            if limit is not None and not _is_limit(limit):
                raise RequestError(f"@pytest.mark.llmenergy: {name} must be a positive number, not {limit!r}")
        tolerance = marker.kwargs.get("tolerance")
        if tolerance is not None and _share(tolerance) is None:
            raise RequestError(
                f"@pytest.mark.llmenergy: tolerance must be a share such as '10%', not {tolerance!r}"
            )


def _is_limit(limit: object) -> bool:
    return isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < float("inf")


def _share(stated: object) -> float | None:
    if isinstance(stated, bool):
        return None
    try:
        share = parse_fraction(str(stated))
    except ValueError:
        return None
    return share if 0 <= share < float("inf") else None


def tolerance_of(node: pytest.Item) -> float | None:
    """The increase from which the gate fails a test's cells, as a fraction; None where no marker states one.

    Raises:
        RequestError: a marker makes no sense.
    """
    check(node)
    stated = _argument(node, "tolerance")
    return None if stated is None else _share(stated)


def sweep_of(node: pytest.Item) -> Any:
    """The sweep that a test runs over, as it is stated; None where no marker states one."""
    return _argument(node, "sweep")


def _argument(node: pytest.Item, name: str) -> Any:
    stated = (marker.kwargs.get(name) for marker in _markers(node))
    return next((value for value in stated if value is not None), None)


def _markers(node: pytest.Item) -> Iterator[pytest.Mark]:
    """A test's markers, nearest first.

    pytest lists a parameter set's markers after those of its test, and a base class's before its subclass's.
    """
    found = list(getattr(getattr(node, "callspec", None), "marks", ()))
    for part in reversed(node.listchain()):
        found += reversed(part.own_markers) if isinstance(part, pytest.Class) else part.own_markers
    return (marker for marker in found if marker.name == _NAME)
