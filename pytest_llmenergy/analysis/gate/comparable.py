"""What may be compared: joules of one machine, one driver, one power limit, one set of meters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.environment import differences
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmenergy.analysis.gate.readings import Reading, Session


def refuse_incomparable(base: Session, head: Session) -> None:
    """Refuse a baseline whose joules are not of the same kind.

    Raises:
        RequestError: naming every difference: machine, driver, power limit, meter, metric, or estimated
            against measured.
    """
    found = differences(base.campaign.environment, head.campaign.environment)
    cells: dict[str, list[str]] = {}
    for cell, before in base.readings.items():
        after = head.readings.get(cell)
        if before.logs and after is not None and after.logs:
            for text in _reading_differences(before, after):
                cells.setdefault(text, []).append(cell.label)
    for text, labels in cells.items():
        more = f" and {len(labels) - 1} more cells" if len(labels) > 1 else ""
        found.append(f"{text} (in '{labels[0]}'{more})")
    if found:
        only_gpu = any(text.startswith(_COUNTED) for text in cells)
        raise RequestError(
            f"{base.name} cannot be the baseline of {head.name}:\n"
            + "\n".join(f"  {text}" for text in found)
            + "\nSave a baseline measured with this machine, these settings and these meters"
            + (", or compare what both have: --metric gpu_energy_j." if only_gpu else ".")
        )


_COUNTED = "energy counted"


def refuse_same(bases: Sequence[Session], heads: Sequence[Session]) -> None:
    """Refuse a document that is given twice: compared with itself it passes, whatever it holds.

    Raises:
        RequestError: naming both places.
    """
    sessions = [*bases, *heads]
    for number, session in enumerate(sessions):
        for former in sessions[:number]:
            if former.campaign == session.campaign:
                raise RequestError(
                    f"{session.name} holds the same measurements as {former.name}: it says nothing about "
                    "itself. Give each session once."
                )


def _reading_differences(before: Reading, after: Reading) -> list[str]:
    if before.provenance is not after.provenance:
        words = ["estimated" if r.provenance is Provenance.ESTIMATED else "measured" for r in (before, after)]
        return [f"energy: {words[0]} against {words[1]}"]
    if before.metric != after.metric:
        return [f"{_COUNTED}: {before.metric} against {after.metric}"]
    if before.sources and after.sources and before.sources != after.sources:
        a, b = (_sources(reading) for reading in (before, after))
        return [f"meter: {a} against {b}"]
    return []


def _sources(reading: Reading) -> str:
    return ", ".join(f"{meter} ({domain})" for domain, meter in sorted(reading.sources))
