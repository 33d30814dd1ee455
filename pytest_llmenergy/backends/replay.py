"""The backend of the simulated machine: its true coefficients are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import ModelRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.backends import Work
    from pytest_llmenergy.simulation import World


class ReplayBackend:
    """Loads models of a replay file."""

    name = "replay"

    def __init__(self, world: World) -> None:
        self._world = world

    def find(self, model: str) -> None:
        """Look it up in the replay file."""
        self._world.model(model)

    def load(self, model: str) -> ReplayLoadedModel:
        """The model of that name in the replay file."""
        return ReplayLoadedModel(self._world, model)


class ReplayLoadedModel:
    """Costs what the replay file says."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._model = world.model(name)

    @property
    def record(self) -> ModelRecord:
        """Named as replayed, so that nobody takes it for a measurement."""
        return ModelRecord(model=self._model.name, backend="replay", details={"simulated": True})

    @property
    def pids(self) -> tuple[int, ...]:
        """None: nothing runs."""
        return ()

    @property
    def system(self) -> str:
        """The simulated machine."""
        return "replay"

    @property
    def is_lost(self) -> bool:
        """Never: nothing runs."""
        return False

    @property
    def n_gpus(self) -> int:
        """One a GPU domain."""
        return sum(domain.startswith("gpu:") for domain in self._model.energy_j)

    def check(self, work: Work) -> None:
        """Refuse work beyond `max_tokens`."""
        tokens = work.tokens_in + work.tokens_out
        if self._model.max_tokens is not None and tokens > self._model.max_tokens:
            raise RequestError(
                f"{self._model.name} has room for {self._model.max_tokens} tokens, the cell needs {tokens}. "
                "Choose smaller token counts."
            )

    def prepare(self, work: Work) -> Work:
        """The work is the request."""
        return work

    def generate(self, request: Work, *, on_first_token: Callable[[], None] | None = None) -> int:
        """Move the world on by one call."""
        self._world.call(
            self._model.name,
            request.tokens_in,
            request.tokens_out,
            request.batch_size,
            kv_cache=request.kv_cache,
            on_first_token=on_first_token,
        )
        return request.batch_size * request.tokens_out

    def verify(self, request: Work, output: int) -> int:
        """Exact by construction."""
        del request
        return output

    def timings(self, output: int) -> dict[str, float]:
        """Nothing is timed."""
        del output
        return {}

    def account(self, work: Work, runtime_s: float) -> dict[str, Any]:
        """A simulated machine does no arithmetic."""
        del work, runtime_s
        return {}

    def close(self) -> None:
        """Nothing is held."""
