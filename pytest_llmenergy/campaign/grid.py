"""Which cells a campaign has, and in which order."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_llmenergy.errors import DocumentError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence


def _powers_of_two(first: int, last: int) -> tuple[int, ...]:
    return tuple(1 << k for k in range(first.bit_length() - 1, last.bit_length()))


class Sweep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The product of two axes, in tokens per sequence."""

    tokens_in: tuple[int, ...]
    tokens_out: tuple[int, ...]

    @property
    def points(self) -> list[tuple[int, int]]:
        """Every (tokens_in, tokens_out)."""
        return [(t_in, t_out) for t_in in self.tokens_in for t_out in self.tokens_out]


class Grid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three experiments of the paper; one that is None is not run."""

    input: Sweep | None = None  # section 5.1.1
    output: Sweep | None = None  # section 5.1.2
    grid: Sweep | None = None  # section 6.1

    def sweep(self, name: str) -> Sweep | None:
        """The experiment of that name: input, output or grid."""
        if name not in SWEEPS:
            raise RequestError(f"unknown sweep {name!r}; there are {', '.join(SWEEPS)}.")
        sweep: Sweep | None = getattr(self, name)
        return sweep


SWEEPS = Grid.__struct_fields__

GRIDS = {
    # Six cells of the token grid; the sweeps are rows and columns of it, so they cost nothing more.
    "quick": Grid(
        input=Sweep(tokens_in=(8, 16, 32), tokens_out=(8,)),
        output=Sweep(tokens_in=(8,), tokens_out=(8, 16)),
        grid=Sweep(tokens_in=(8, 16, 32), tokens_out=(8, 16)),
    ),
    "paper-input": Grid(input=Sweep(tokens_in=_powers_of_two(8, 2048), tokens_out=(32,))),
    "paper-output": Grid(output=Sweep(tokens_in=(32,), tokens_out=_powers_of_two(8, 4096))),
    "paper-grid": Grid(grid=Sweep(tokens_in=_powers_of_two(8, 2048), tokens_out=_powers_of_two(8, 2048))),
}


def open_grid(
    name: str, *, tokens_in: Sequence[int] | None = None, tokens_out: Sequence[int] | None = None
) -> Grid:
    """A grid by name or TOML file, its axes replaced where they are given.

    Raises:
        RequestError: there is no such grid, or a token count is below 1.
        DocumentError: the file is no grid.
    """
    grid = GRIDS[name] if name in GRIDS else _read_grid(name)
    sweeps = {
        field: Sweep(
            tokens_in=tuple(tokens_in or sweep.tokens_in), tokens_out=tuple(tokens_out or sweep.tokens_out)
        )
        for field in SWEEPS
        if (sweep := grid.sweep(field)) is not None
    }
    for field, sweep in sweeps.items():
        for axis in SWEEP_AXES:
            counts: tuple[int, ...] = getattr(sweep, axis)
            if not counts or min(counts) < 1:
                raise RequestError(
                    f"grid {name}, {field}: {axis} must be token counts of at least 1, not {list(counts)}."
                )
    return Grid(**sweeps)


SWEEP_AXES = Sweep.__struct_fields__


def _read_grid(name: str) -> Grid:
    path = Path(name)
    if path.suffix != ".toml":
        raise RequestError(
            f"unknown grid {name!r}; choose {', '.join(GRIDS)}, or name a .toml file (docs/campaigns.md)."
        )
    try:
        grid = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Grid)
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror}).", "Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise DocumentError(path, f"is not a grid: {error}.", "See docs/campaigns.md.") from error
    if grid == Grid():
        raise DocumentError(path, "has no sweep.", "Give it a table [input], [output] or [grid].")
    return grid


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cell stands in the plan of a campaign, as far as it is known before the model is loaded."""

    model: str
    tokens_in: int
    tokens_out: int

    def cost(self, *, kv_cache: bool) -> float:
        """Token passes of the cell, to weigh the time that is left; no unit."""
        t, n = self.tokens_in, self.tokens_out
        return t + n if kv_cache else n * t + n * (n - 1) / 2


def shuffled(places: Sequence[Place], *, seed: int, models: Sequence[str]) -> list[Place]:
    """Each model's cells together, in seeded random order; the models in the order they were asked for.

    The order depends on the set of cells and the seed alone, so a resumed campaign goes on in the same one.
    """
    ordered: list[Place] = []
    known = dict.fromkeys((*models, *sorted({place.model for place in places})))
    for model in known:
        cells = sorted(
            {place for place in places if place.model == model},
            key=lambda place: (place.tokens_in, place.tokens_out),
        )
        random.Random(f"{seed}/{model}").shuffle(cells)  # noqa: S311 - order, not secrets
        ordered += cells
    return ordered
