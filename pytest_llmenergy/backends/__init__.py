"""Models to tokens: one file an engine, one protocol for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.records import ModelRecord
    from pytest_llmenergy.simulation import World


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
    def pids(self) -> tuple[int, ...]:
        """Processes other than ours that do the work; none where it is done in this one."""
        ...

    @property
    def system(self) -> str | None:
        """The hardware it runs on, where the engine knows better than the environment."""
        ...

    @property
    def n_gpus(self) -> int | None:
        """How many GPUs hold a part of it; None where the engine cannot tell."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether it can do no more calls and has to be loaded anew."""
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

    def generate(self, request: Any, *, on_first_token: Callable[[], None] | None = None) -> Any:
        """Do the work; this alone runs inside the window.

        `on_first_token` is called once, when every sequence has its first token: the end of prefill. It costs
        something, so it is passed on trials that ask for phases and on no others.
        """
        ...

    def verify(self, request: Any, output: Any) -> int:
        """Count what was generated over the whole batch, on the output itself; not metered.

        Raises:
            WrongWorkError: it is not what was asked for.
        """
        ...

    def timings(self, output: Any) -> dict[str, float]:
        """What the engine itself timed while it worked: `ttft_s`, `tpot_s`; empty where nothing."""
        ...

    def account(self, work: Work, runtime_s: float) -> dict[str, Any]:
        """What a call of that runtime did in physical terms: `flops`, `bytes`, `mfu`; empty if unknown.

        Raises:
            WrongWorkError: it was faster than its devices can be, so it did not do the work.
        """
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class Backend(Protocol):
    """An engine that loads models."""

    name: str

    def find(self, model: str) -> object:
        """Look whether a model can be had, before anything is measured; cheap.

        Raises:
            RequestError: it cannot.
        """
        ...

    def load(self, model: str) -> LoadedModel:
        """Load a model by preset name, local directory or hub id.

        Raises:
            RequestError: there is no such model, or it cannot be had.
            DoesNotFitError: it needs more memory than there is.
        """
        ...


BACKENDS = ("transformers", "openai", "replay")


def open_backend(
    name: str = "transformers",
    *,
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    offload: bool = False,
    n_ranks: int = 1,
    prompts: tuple[str, ...] = (),
    base_url: str | None = None,
    world: World | None = None,
) -> Backend:
    """Open an engine; its packages are imported here and not before.

    Args:
        name: one of `BACKENDS`.
        dtype: "bfloat16", "float16" or "float32"; by default the weights' own, bfloat16 for random ones, and
            float32 for tiny models on a CPU.
        device: "auto" (the default) takes the fewest GPUs that hold the model, or the CPU if there is none;
            "all" spreads it over every GPU; "cpu", "cuda", "cuda:1" take that one.
        threads: CPU threads of a model on the CPU; by default one for tiny models, all cores for others.
        seed: of random weights.
        trust_remote_code: run code that a model directory brings.
        offload: let what no GPU has room for stay in the machine's memory.
        n_ranks: share every matrix between so many processes, one a GPU (tensor parallelism).
        prompts: in place of random tokens, each cut to a cell's length; the model needs a tokenizer.
        base_url: of the server, for "openai"; the other arguments are then the server's own business.
        world: the simulated machine, for "replay".

    Raises:
        RequestError: there is no such backend, or an argument is wrong.
        MissingExtraError: its packages are not installed.
    """
    match name:
        case "transformers":
            from pytest_llmenergy.backends.transformers import TransformersBackend

            return TransformersBackend(
                dtype=dtype,
                device=device,
                threads=threads,
                seed=seed,
                trust_remote_code=trust_remote_code,
                offload=offload,
                n_ranks=n_ranks,
                user_prompts=prompts,
            )
        case "openai":
            from pytest_llmenergy.backends.openai_http import OpenAIBackend

            if base_url is None:
                raise RequestError("the openai backend needs a server. Give its address, as base_url.")
            if prompts:
                raise RequestError("a server is sent prompts of its own length: leave your prompts out.")
            return OpenAIBackend(base_url)
        case "replay":
            from pytest_llmenergy.backends.replay import ReplayBackend

            if world is None:
                raise RequestError("the replay backend needs a simulated machine. Give a replay file.")
            return ReplayBackend(world)
        case _:
            raise RequestError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}.")
