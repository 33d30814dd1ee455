"""A simulated machine whose engine raises, or is interrupted, at a scripted moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.backends.replay import ReplayBackend, ReplayLoadedModel
from pytest_llmenergy.campaign.interrupts import Interrupts
from pytest_llmenergy.campaign.observer import Silent
from pytest_llmenergy.campaign.runner import Runner
from pytest_llmenergy.campaign.settings import Settings
from pytest_llmenergy.campaign.stopping import StopRule
from pytest_llmenergy.meters.replay import ReplayMeter
from pytest_llmenergy.meters.window import Meters
from pytest_llmenergy.records import Environment, Gpu
from pytest_llmenergy.simulation import Coefficients, Noise, Replay, ReplayModel, World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_llmenergy.backends import Work

HERE = Environment(
    hostname="node1",
    gpus=(Gpu(index=0, name="NVIDIA A100", uuid="GPU-1"),),
    libraries={"torch": "2.7.0", "numpy": "2.2.0"},
    commit="c0ffee",
)
STEP_J, STEP_S, IDLE_W = 30.0, 0.1, 60.0  # of models "a" and "b", a step


def nothing(*_: object) -> None:
    """Do what is done when nothing is scripted."""


class Engine(ReplayBackend):
    """Replay, with a hook before every call and before every close."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.works: list[Work] = []
        self.loads: list[str] = []
        self.has_lost = False  # the loaded model, until it is loaded anew
        self.before_call: Callable[[int], None] = nothing  # told the number of the call, from 1
        self.before_close: Callable[[], None] = nothing

    def load(self, model: str) -> ReplayLoadedModel:
        """A model that tells the engine."""
        self.loads.append(model)
        self.has_lost = False
        return _Loaded(self, self._world, model)


class _Loaded(ReplayLoadedModel):
    def __init__(self, engine: Engine, world: World, name: str) -> None:
        super().__init__(world, name)
        self._engine = engine

    @property
    def is_lost(self) -> bool:
        return self._engine.has_lost

    def generate(self, request: Work, *, on_first_token: Callable[[], None] | None = None) -> int:
        self._engine.works.append(request)
        self._engine.before_call(len(self._engine.works))
        return super().generate(request, on_first_token=on_first_token)

    def close(self) -> None:
        self._engine.before_close()


class Notices(Silent):
    """Keeps what a person was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        """Keep it."""
        self.texts.append(text)


class Machine:
    """Runs campaigns in one folder; every runner has an engine, meters and an observer of its own."""

    def __init__(self, folder: Path, *, noise: float = 0.0) -> None:
        self.folder = folder
        costs = {"gpu:0": Coefficients(step=STEP_J)}
        models = tuple(
            ReplayModel(name=name, runtime_s=Coefficients(step=STEP_S), energy_j=costs) for name in "ab"
        )
        self.replay = Replay(
            schema="llmenergy.replay/1",
            models=models,
            idle_power_w={"gpu:0": IDLE_W},
            noise=Noise(trial=noise),
        )
        self.before_sleep: Callable[[], None] = nothing
        self.interrupts = Interrupts()

    def runner(
        self, *, environment: Environment = HERE, rule: StopRule | None = None, **settings: object
    ) -> Runner:
        """Begin or resume a campaign; `engine` and `notices` are this runner's from now on."""
        self.world = World(self.replay)
        self.engine = Engine(self.world)
        observer = Notices()
        self.notices = observer.texts
        return Runner(
            Settings(models=("a", "b"), results=self.folder, rule=rule or StopRule(), **settings),
            meters=Meters([ReplayMeter(self.world)], clock=self.world.clock),
            open_backend=lambda: self.engine,
            environment=environment,
            observer=observer,
            interrupts=self.interrupts,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.before_sleep()
        self.world.idle(seconds)
