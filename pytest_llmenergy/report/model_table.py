"""What each model preset needs: `llmenergy-report doctor --models`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.backends import placement, presets
from pytest_llmenergy.report.tables import plain_table
from pytest_llmenergy.units import UNKNOWN, bytes_from_gigabytes, format_quantity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

GPU_MEMORY_GB = 40.0  # the paper's A100


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One preset."""

    model: str
    parameters: int
    active_parameters: int  # that one token passes through
    memory_b: int  # of the weights in bf16
    kv_bytes_per_token: int  # of one sequence, in bf16
    context: int  # tokens it was trained for
    n_gpus: int | None  # of the size asked for; None where not even a layer fits
    accuracy_pct: float | None  # A_K of the paper's Table 1


def model_rows(gpu_memory_gb: float = GPU_MEMORY_GB) -> tuple[ModelRow, ...]:
    """Every preset, with the GPUs of that size that its weights need."""
    return tuple(
        ModelRow(
            model=preset.name,
            parameters=preset.parameters,
            active_parameters=preset.active_parameters,
            memory_b=preset.memory_b,
            kv_bytes_per_token=preset.kv_bytes_per_token,
            context=preset.context,
            n_gpus=placement.gpus_needed(preset, bytes_from_gigabytes(gpu_memory_gb)),
            accuracy_pct=preset.accuracy_pct,
        )
        for preset in presets.PRESETS.values()
    )


def model_table(rows: Iterable[ModelRow], gpu_memory_gb: float = GPU_MEMORY_GB) -> Table:
    """The rows as a table for a terminal of 80 columns."""
    table = plain_table(
        "Model presets (weights and cache in bf16; A_K as in the paper's Table 1)",
        "model",
        "params",
        "active",
        "memory",
        "KV/token",
        "context",
        f"{gpu_memory_gb:g} GB GPUs",
        "A_K %",
        left=1,
    )
    for row in rows:
        same = row.active_parameters == row.parameters
        table.add_row(
            row.model,
            _count(row.parameters),
            "all" if same else _count(row.active_parameters),
            format_quantity(row.memory_b, "B"),
            format_quantity(row.kv_bytes_per_token, "B"),
            f"{row.context:,}",
            UNKNOWN if row.n_gpus is None else str(row.n_gpus),
            UNKNOWN if row.accuracy_pct is None else f"{row.accuracy_pct:.2f}",
        )
    return table


def _count(parameters: int) -> str:
    """The field's own way: billions are B."""
    return format_quantity(parameters, "", digits=3).replace(" ", "").replace("G", "B")
