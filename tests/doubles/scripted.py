"""Campaigns on the simulated machine: the coefficients behind every joule are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.campaign.results import write_results
from pytest_llmenergy.meters.replay import ReplayMeter
from pytest_llmenergy.records import Campaign, CellRecord, Environment, ModelRecord, Trial
from pytest_llmenergy.simulation import Coefficients, Noise, Replay, ReplayModel, World

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AXIS = (8, 32, 128, 512, 2048)
GRID = tuple((t, n) for t in AXIS for n in AXIS)
# Llama-2-7B's scale on one A100, per sequence of the batch.
ENERGY = Coefficients(step=3.8, token_pass=0.027, pair=4e-6)
RUNTIME = Coefficients(step=0.026, token_pass=4e-5, pair=2e-8)


def scripted(
    path: Path,
    *,
    energy_j: dict[str, Coefficients] | None = None,
    runtime_s: Coefficients = RUNTIME,
    models: Sequence[str] = ("m",),
    scales: Sequence[float] = (1.0,),
    system: str = "node",
    fingerprint: str | None = None,
    kv_cache: bool = False,
    batch_size: int = 1,
    grid: Sequence[tuple[int, int]] = GRID,
    trials: int = 3,
    noise: float = 0.01,
    seed: int = 0,
    estimated: tuple[str, ...] = (),
    active_parameters: Sequence[int] = (),
) -> Path:
    """Write a results document of models whose costs are `scales` times the coefficients."""
    energy_j = energy_j or {"gpu:0": ENERGY}

    def scaled(one: Coefficients, scale: float) -> Coefficients:
        return Coefficients(**{name: scale * getattr(one, name) for name in one.__struct_fields__})

    replay = Replay(
        schema="llmenergy.replay/1",
        seed=seed,
        estimated=estimated,
        noise=Noise(trial=noise),
        models=tuple(
            ReplayModel(
                name=name,
                runtime_s=scaled(runtime_s, scale),
                energy_j={domain: scaled(one, scale) for domain, one in energy_j.items()},
            )
            for name, scale in zip(models, scales, strict=True)
        ),
    )
    world = World(replay)
    meter = ReplayMeter(world)

    def trial(model: str, t: int, n: int, index: int) -> Trial:
        mark, start_s = meter.begin(), world.clock()
        world.call(model, t, n, batch_size, kv_cache=kv_cache)
        return Trial(index=index, runtime_s=world.clock() - start_s, domains=meter.end(mark))

    cells = tuple(
        CellRecord(
            model=model,
            system=system,
            n_gpus=1,
            batch_size=batch_size,
            kv_cache=kv_cache,
            tokens_in=t,
            tokens_out=n,
            trials=tuple(trial(model, t, n, index) for index in range(trials)),
        )
        for model in models
        for t, n in grid
    )
    records = tuple(
        ModelRecord(model=model, backend="replay", active_parameters=count, parameters=count)
        for model, count in zip(models, active_parameters, strict=False)
    )
    write_results(
        path, Campaign(environment=Environment(fingerprint=fingerprint), cells=cells, models=records)
    )
    return path
