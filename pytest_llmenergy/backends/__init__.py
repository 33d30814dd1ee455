"""Models to tokens: one file an engine, one protocol for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_llmenergy.records import ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call has to do; token counts are per sequence."""

    tokens_in: int
    tokens_out: int
    batch_size: int
    kv_cache: bool
    seed: int


class LoadedModel(Protocol):
    """A model ready to generate."""

    @property
    def record(self) -> ModelRecord:
        """What was loaded, and how."""
        ...

    @property
    def system(self) -> str | None:
        """The hardware it runs on, where the engine knows better than the environment."""
        ...

    @property
    def n_gpus(self) -> int:
        """How many GPUs hold a part of it."""
        ...

    def check(self, work: Work) -> str | None:
        """Refuse work the model cannot do, before anything is measured; a warning to print, or None.

        Raises:
            RequestError: the work cannot be done (tokens beyond the context, say).
        """
        ...

    def prepare(self, work: Work) -> Any:
        """Make the request (random tokens on the device); not metered."""
        ...

    def generate(self, request: Any) -> Any:
        """Do the work; this alone runs inside the window."""
        ...

    def verify(self, request: Any, output: Any) -> int:
        """Count what was generated over the whole batch, on the output itself; not metered.

        Raises:
            WrongWorkError: it is not what was asked for.
        """
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class Backend(Protocol):
    """An engine that loads models."""

    name: str

    def load(self, model: str) -> LoadedModel:
        """Load a model by preset name, local directory or hub id.

        Raises:
            RequestError: there is no such model, or it cannot be had.
            DoesNotFitError: it needs more memory than there is.
        """
        ...
