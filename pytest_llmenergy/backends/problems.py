"""What a library raises on a model that cannot be had or held, turned into one message of ours."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

from pytest_llmenergy.backends import placement
from pytest_llmenergy.errors import DoesNotFitError, LLMEnergyError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def problems_named(name: str) -> Iterator[None]:
    """Turn what transformers raises on a model it cannot load into one message of ours."""
    try:
        yield
    except LLMEnergyError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise RequestError(f"{name} cannot be loaded: {first_line(error)}") from error


@contextlib.contextmanager
def memory_named(what: Callable[[], tuple[str, int | None]], remedy: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or in the machine, into an error the campaign goes on after.

    Args:
        what: called when it happens: what did not fit, and how many bytes it takes, None where unknown.
        remedy: what to do about it.

    Raises:
        DoesNotFitError: memory ran out inside the block.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        # The CPU's allocator has no exception of its own.
        if not (on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
            raise
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        room = placement.free_room()
        name, needed_b = what()
        raise DoesNotFitError(
            f"{name} does not fit: {first_line(error)} {remedy}",
            needed_b=needed_b,
            available_b=sum(room.gpus_b.values()) if on_gpu else room.cpu_b,
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return str(error).strip().partition("\n")[0]
