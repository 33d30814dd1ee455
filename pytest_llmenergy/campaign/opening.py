"""From settings to a running campaign: the meters and models of this machine, or of a simulated one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmenergy.backends import open_backend
from pytest_llmenergy.backends.prompts import read_prompts
from pytest_llmenergy.campaign.runner import Runner
from pytest_llmenergy.environment import read_environment
from pytest_llmenergy.errors import RequestError, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.backends import Backend
    from pytest_llmenergy.campaign.interrupts import Interrupts
    from pytest_llmenergy.campaign.observer import Observer
    from pytest_llmenergy.campaign.settings import Settings
    from pytest_llmenergy.meters.window import Meters
    from pytest_llmenergy.simulation import World

REPLAY = "replay:"
# Which session of the simulated machine this is: each has noise of its own.
REPLAY_SESSION = "LLMENERGY_REPLAY_SESSION"


def open_campaign(
    settings: Settings, observer: Observer | None = None, interrupts: Interrupts | None = None
) -> Runner:
    """Open the meters, look at the machine, and begin or resume the campaign.

    Raises:
        RequestError: a model, a meter or the results folder cannot be had; nothing has been measured.
    """
    world = _world(settings)
    opened = _opener(settings, world)
    if settings.trace:
        if world is not None:
            raise RequestError("a simulated machine has no power trace: leave --llm-energy-trace out.")
        require("pyarrow.parquet", feature="--llm-energy-trace", extra="trace")
    meters = _meters(settings, world)
    try:
        return Runner(
            settings,
            meters=meters,
            open_backend=opened,
            environment=read_environment(meters=meters.sources),
            observer=observer,
            interrupts=interrupts,
            sleep=time.sleep if world is None else world.idle,
        )
    except BaseException:
        meters.close()
        raise


def _opener(settings: Settings, world: World | None) -> Callable[[], Backend]:
    """How to open the engine, once it is known that it has the models."""
    if world is not None:
        return lambda: open_backend("replay", world=world)
    prompts = () if settings.prompts is None else read_prompts(settings.prompts)
    if settings.base_url is not None:
        backend = open_backend("openai", base_url=settings.base_url, prompts=prompts)
    else:
        backend = open_backend(
            "transformers",
            seed=settings.seed,
            dtype=settings.dtype,
            device=settings.device,
            offload=settings.offload,
            n_ranks=settings.tensor_parallel,
            prompts=prompts,
        )
    for model in settings.models:
        backend.find(model)
    return lambda: backend


def _world(settings: Settings) -> World | None:
    files = [name.removeprefix(REPLAY) for name in settings.meters if name.startswith(REPLAY)]
    if not files:
        return None
    if len(settings.meters) > 1:
        raise RequestError("a simulated machine has its own meters: give replay:FILE alone.")
    from pytest_llmenergy.simulation import open_world

    world = open_world(Path(files[0]), session=os.environ.get(REPLAY_SESSION, "0"))
    for model in settings.models:
        world.model(model)
    return world


def _meters(settings: Settings, world: World | None) -> Meters:
    if world is not None:
        from pytest_llmenergy.meters.replay import ReplayMeter
        from pytest_llmenergy.meters.window import Meters

        return Meters([ReplayMeter(world)], clock=world.clock)
    from pytest_llmenergy.meters import open_meters

    return open_meters(settings.meters, require_measured=settings.require_measured, trace=settings.trace)
