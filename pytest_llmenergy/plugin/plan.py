"""Which cells the collected tests will measure, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmenergy.campaign.grid import Place, shuffled
from pytest_llmenergy.plugin.marker import sweep_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

    from pytest_llmenergy.campaign.runner import Runner


def measuring(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests that name the `energy` fixture."""
    return [item for item in items if "energy" in getattr(item, "fixturenames", ())]


def is_swept(item: pytest.Item) -> bool:
    """Whether a test runs over a sweep of the campaign's models."""
    return sweep_of(item) is not None


def in_order(items: Sequence[pytest.Item], *, seed: int, models: Sequence[str]) -> list[pytest.Item]:
    """The tests without a cell of their own, then each model's cells together, in seeded random order."""
    of_cells = [(place, item) for item in measuring(items) if (place := place_of(item)) is not None]
    order = shuffled([place for place, _ in of_cells], seed=seed, models=models)
    rank = {place: number for number, place in enumerate(order)}
    of_cells.sort(key=lambda pair: (rank[pair[0]], pair[1].nodeid))
    moved = {id(item) for _, item in of_cells}
    return [item for item in items if id(item) not in moved] + [item for _, item in of_cells]


def cells_to_come(items: Iterable[pytest.Item], runner: Runner) -> list[Place]:
    """A place for each cell that tests are parametrised with and that the campaign has not.

    A test's own batch sizes and caches make cells of their own; several tests of one cell make one.
    """
    settings = runner.settings
    have = {
        (Place(cell.model, cell.tokens_in, cell.tokens_out), cell.batch_size, cell.kv_cache)
        for cell in runner.campaign(complete=False).cells
    }
    wanted: dict[tuple[Place, Any, Any], None] = {}
    for item in items:
        place, params = place_of(item), _params(item)
        if place is not None:
            batch_size, kv_cache = params.get("batch_size"), params.get("kv_cache")
            key = (
                place,
                batch_size if isinstance(batch_size, int) else settings.batch_size,
                kv_cache if isinstance(kv_cache, bool) else settings.kv_cache,
            )
            wanted[key] = None
    return [key[0] for key in wanted if key not in have]


def _params(item: pytest.Item) -> dict[str, Any]:
    """What a test is parametrised with."""
    params: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return params


def place_of(item: pytest.Item) -> Place | None:
    """The cell a test is parametrised with; None where its parameters of these names are something else."""
    params = _params(item)
    model, tokens_in, tokens_out = (params.get(name) for name in ("model", "tokens_in", "tokens_out"))
    if not isinstance(model, str) or isinstance(tokens_in, bool) or isinstance(tokens_out, bool):
        return None
    if not isinstance(tokens_in, int) or not isinstance(tokens_out, int):
        return None
    return Place(model, tokens_in, tokens_out)
