"""The arguments of every command that analyses results: which documents, and which of their cells."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmenergy.analysis.observations import Observations


# What --metric takes, and the metrics it means.
METRICS = {
    "energy": ("gpu_energy_j", "cpu_energy_j", "energy_j"),
    "gpu": ("gpu_energy_j",),
    "cpu": ("cpu_energy_j",),
    "total": ("energy_j",),
    "runtime": ("runtime_s",),
    "gpu_energy_j": ("gpu_energy_j",),
    "cpu_energy_j": ("cpu_energy_j",),
    "energy_j": ("energy_j",),
    "runtime_s": ("runtime_s",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the options said."""

    results: tuple[Path, ...]
    models: tuple[str, ...]
    systems: tuple[str, ...]
    batch_size: int | None
    kv_cache: bool | None
    pool: bool


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as the argument `chosen`."""

    @click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
    @click.option("--model", "models", multiple=True, help="Only this model; may be given several times.")
    @click.option("--system", "systems", multiple=True, help="Only this system; may be given several times.")
    @click.option("--batch-size", type=click.IntRange(min=1), help="Only cells of this batch size.")
    @click.option(
        "--kv-cache/--no-kv-cache",
        default=None,
        help="Only cells of this generation mode; cells that do not say are taken to be of it.",
    )
    @click.option("--pool", is_flag=True, help="Take all machines for one; they are kept apart otherwise.")
    @functools.wraps(command)
    def with_selection(
        *,
        results: tuple[Path, ...],
        models: tuple[str, ...],
        systems: tuple[str, ...],
        batch_size: int | None,
        kv_cache: bool | None,
        pool: bool,
        **others: Any,
    ) -> Any:
        from pytest_llmenergy.errors import require

        for package in ("numpy", "polars", "scipy"):  # before any module that stands on them
            require(package, feature="analysing results", extra="analysis")
        chosen = Selection(
            results=results,
            models=models,
            systems=systems,
            batch_size=batch_size,
            kv_cache=kv_cache,
            pool=pool,
        )
        return command(chosen=chosen, **others)

    return with_selection


def selected(chosen: Selection) -> Observations:
    """Read the documents and narrow them."""
    from pytest_llmenergy.analysis import observations

    return observations.read(chosen.results, pool=chosen.pool, kv_cache=chosen.kv_cache).select(
        models=chosen.models,
        systems=chosen.systems,
        batch_size=chosen.batch_size,
        kv_cache=chosen.kv_cache,
    )


def metrics_named(
    names: Sequence[str], observations: Observations, *, everywhere: bool = False
) -> tuple[str, ...]:
    """The metrics that --metric means: of those that are known, all when it was not given.

    Args:
        names: as given.
        observations: what was measured.
        everywhere: only metrics known of every trial, unless named.

    Raises:
        RequestError: what was named is not known of these results.
    """
    from pytest_llmenergy.errors import RequestError

    known = observations.metrics()
    if not names:
        trials = observations.trials
        return tuple(name for name in known if not everywhere or trials[name].null_count() == 0)
    wanted = {metric for name in names for metric in METRICS[name]}
    found = tuple(metric for metric in known if metric in wanted)
    if not found:
        raise RequestError(f"{', '.join(names)} is not known of these results; known are {', '.join(known)}.")
    return found
