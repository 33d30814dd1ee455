"""Tables of a results document, for a terminal of 80 columns."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

from pytest_llmenergy.records import DOES_NOT_FIT, PHASES, Campaign, CellRecord, Provenance, WindowRecord
from pytest_llmenergy.units import (
    UNKNOWN,
    format_count,
    format_energy,
    format_percent,
    format_power,
    format_runtime,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from pytest_llmenergy.records import DomainEnergy, Summary

WIDTH = 80
_WHY = {DOES_NOT_FIT: "no room", "interrupted": "interrupted"}
_MOST_NAMED = 3  # cells in one note


def render(tables: Iterable[Table | str], *, width: int = WIDTH) -> list[str]:
    """Tables and text as plain lines, none wider than `width`; before a table after text is a blank line."""
    from rich.console import Console

    lines: list[str] = []
    for table in tables:
        file = io.StringIO()
        Console(file=file, width=width, color_system=None, highlight=False, markup=False).print(table)
        printed = [line.rstrip() for line in file.getvalue().splitlines()]
        if not isinstance(table, str) and lines and lines[-1] and printed[0]:
            lines.append("")
        lines += printed
    return lines


def plain_table(title: str, *columns: str, left: int = 0) -> Table:
    """An empty table in the house style: the first `left` columns are text, the others figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=number >= left)
    return table


def summary_tables(campaign: Campaign) -> list[Table | str]:
    """The closing tables: cells by model and setting, then windows outside cells."""
    groups: dict[tuple[object, ...], list[CellRecord]] = {}
    for cell in campaign.cells:
        key = (cell.model, cell.system, cell.n_gpus, cell.batch_size, cell.kv_cache)
        groups.setdefault(key, []).append(cell)
    tables: list[Table | str] = [_cells_table(cells) for cells in groups.values()]
    phased = [cell for cell in campaign.cells if cell.summary is not None and cell.summary.ttft_s is not None]
    if phased:
        tables.append(_phases_table(phased))
    if campaign.windows:
        tables.append(_windows_table(campaign.windows))
    tables.extend(_notes(campaign))
    return tables


def _cells_table(cells: list[CellRecord]) -> Table:
    first = cells[0]
    gpus = f" ({first.n_gpus} GPUs)" if first.n_gpus is not None and first.n_gpus > 1 else ""
    cache = {True: ", KV cache", False: ", no KV cache", None: ""}[first.kv_cache]
    table = plain_table(
        f"{first.model} on {first.system}{gpus}, batch {first.batch_size}{cache}",
        "in",
        "out",
        "trials",
        "runtime",
        "power",
        "J/request",
        "J/token",
        "95 %" if _confidence(cells) == CONFIDENCE else "±",
        "energy",
    )
    for cell in sorted(cells, key=lambda cell: (cell.tokens_in, cell.tokens_out)):
        summary = cell.summary
        counted = sum(trial.counts for trial in cell.trials)
        if summary is None or cell.error is not None or summary.runtime_s is None:
            why = _WHY.get(cell.stop.reason, "failed") if cell.stop is not None else "failed"
            table.add_row(str(cell.tokens_in), str(cell.tokens_out), str(counted), *[UNKNOWN] * 5, why)
            continue
        energy_j = summary.energy_j if summary.energy_basis == "energy_j" else summary.gpu_energy_j
        table.add_row(
            str(cell.tokens_in),
            str(cell.tokens_out),
            str(counted),
            format_runtime(summary.runtime_s),
            format_power(summary.power_w),
            format_energy(None if energy_j is None else energy_j / cell.batch_size),
            format_energy(summary.energy_j_per_token),
            _spread(summary),
            _source(summary),
        )
    return table


def _phases_table(cells: Iterable[CellRecord]) -> Table:
    table = plain_table(
        "prefill and decode, energy of one request",
        "model",
        "in",
        "out",
        "trials",
        "TTFT",
        "TPOT",
        "prefill",
        "decode",
        left=1,
    )
    for cell in sorted(cells, key=lambda cell: (cell.model, cell.tokens_in, cell.tokens_out)):
        if cell.summary is None:
            continue
        phases = {phase.name: phase for phase in cell.summary.phases}
        energies_j = {
            name: phase.gpu_energy_j if cell.summary.energy_basis == "gpu_energy_j" else phase.energy_j
            for name, phase in phases.items()
        }
        table.add_row(
            cell.model,
            str(cell.tokens_in),
            str(cell.tokens_out),
            str(max((phase.trials for phase in phases.values()), default=0)),
            format_runtime(cell.summary.ttft_s),
            format_runtime(cell.summary.tpot_s),
            *(_per_request(energies_j.get(name), cell.batch_size) for name in ("prefill", "decode")),
        )
    return table


def _per_request(energy_j: float | None, batch_size: int) -> str:
    return format_energy(None if energy_j is None else energy_j / batch_size)


CONFIDENCE = 0.95


def _confidence(cells: list[CellRecord]) -> float:
    found = {cell.stop.confidence for cell in cells if cell.stop is not None and cell.stop.confidence}
    return found.pop() if len(found) == 1 else CONFIDENCE


def _windows_table(windows: Iterable[WindowRecord]) -> Table:
    from pytest_llmenergy import accounting

    table = plain_table(
        "windows outside cells", "label", "trials", "runtime", "J", "J/token", "±", "energy", left=1
    )
    for window in windows:
        found = accounting.energy(window.domains)
        summary = window.summary
        energy_j = None if found is None else found.energy_j
        if summary is not None:
            energy_j = summary.energy_j
        table.add_row(
            window.label,
            str(sum(trial.counts for trial in window.trials) if window.trials else 1),
            format_runtime(window.runtime_s),
            format_energy(energy_j),
            UNKNOWN if summary is None else format_energy(summary.energy_j_per_token),
            UNKNOWN if summary is None else _spread(summary),
            UNKNOWN if found is None else found.provenance.value,
        )
    return table


def _spread(summary: Summary) -> str:
    per_token_j, half_width_j = summary.energy_j_per_token, summary.energy_j_per_token_half_width
    if not per_token_j or half_width_j is None:
        return UNKNOWN
    return f"±{format_percent(half_width_j / per_token_j)}"


def _source(summary: Summary) -> str:
    if summary.provenance is Provenance.UNAVAILABLE:
        return "unknown"
    basis = "GPU, " if summary.energy_basis == "gpu_energy_j" else ""
    return basis + summary.provenance.value


def _domains(measured: CellRecord | WindowRecord) -> tuple[DomainEnergy, ...]:
    if isinstance(measured, WindowRecord):
        return measured.domains
    return measured.trials[-1].domains if measured.trials else ()


def _disturbance(cell: CellRecord) -> str:
    """What disturbed most of a cell's trials."""
    flags = Counter(flag for trial in cell.trials if trial.counts for flag in trial.flags)
    share = sum(bool(trial.flags) for trial in cell.trials if trial.counts)
    told = f"{share} of {format_count(sum(t.counts for t in cell.trials), 'trial', 'trials')}"
    return f"{cell.model} {cell.tokens_in}->{cell.tokens_out} in {told} ({flags.most_common(1)[0][0]})"


def _notes(campaign: Campaign) -> list[str]:
    notes = []
    capped = sum(cell.stop is not None and cell.stop.reason == "max-trials" for cell in campaign.cells)
    if capped:
        notes.append(
            f"{capped} of {len(campaign.cells)} cells stopped at the cap on trials, before their interval "
            "was narrow enough."
        )
    measured: list[CellRecord | WindowRecord] = [*campaign.cells, *campaign.windows]
    excluded = sum(trial.excluded not in (None, PHASES) for one in measured for trial in one.trials)
    if excluded:
        trials = "1 trial was" if excluded == 1 else f"{excluded} trials were"
        notes.append(f"{trials} excluded; results.json says why.")
    failed = [one for one in measured if one.error is not None]
    notes += [f"{one.label}: {one.error}" for one in failed]
    disturbed = [cell for cell in campaign.cells if any(t.counts and t.flags for t in cell.trials)]
    if disturbed:
        named = "; ".join(map(_disturbance, disturbed[:_MOST_NAMED]))
        more = "; ..." if len(disturbed) > _MOST_NAMED else "."
        cells = format_count(len(campaign.cells), "cell", "cells")
        notes.append(f"Disturbed while it was measured, {len(disturbed)} of {cells}: {named}{more}")
    estimated = any(part.provenance is Provenance.ESTIMATED for one in measured for part in _domains(one))
    if estimated:
        notes.append(
            "Estimated energy comes from a model of the hardware, not from a sensor: compare it with "
            "nothing but itself."
        )
    return notes
