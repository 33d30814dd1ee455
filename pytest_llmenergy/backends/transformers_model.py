"""A loaded transformers model: exactly the tokens asked for, with or without a KV cache."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmenergy import units
from pytest_llmenergy.backends import counting, prompts
from pytest_llmenergy.backends.problems import memory_named
from pytest_llmenergy.errors import RequestError, WrongWorkError
from pytest_llmenergy.records import ModelRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from pytest_llmenergy.backends import Work
    from pytest_llmenergy.backends.sources import Source

BACKEND = "transformers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call takes."""

    work: Work
    input_ids: torch.Tensor  # [batch_size, tokens_in]
    attention_mask: torch.Tensor  # [batch_size, tokens_in], all ones: nothing is padded
    generation_config: Any


class TransformersModel:
    """A loaded model."""

    n_ranks = 1  # processes that share it

    def __init__(
        self,
        network: Any,
        *,
        source: Source,
        load_s: float,
        details: dict[str, Any],
        user_prompts: tuple[str, ...] = (),
    ) -> None:
        from transformers import GenerationConfig

        self._network = network.eval()
        # A generation config passed to generate() is refilled from the model's own, EOS included: replace
        # that one, so that nothing but the length ends a sequence.
        network.generation_config = GenerationConfig(pad_token_id=0)
        self._source = source
        self.load_s = load_s
        self._details = details
        self._config = network.config.get_text_config()
        self._prompts = (
            prompts.UserPrompts(user_prompts, source)
            if user_prompts
            else prompts.RandomTokens(vocabulary=int(self._config.vocab_size))
        )
        self._device = next(network.parameters()).device
        self._parameters = sum(parameter.numel() for parameter in network.parameters())
        self._shape = counting.shape_of(network)

    def expect_parameters(self, source: Source) -> None:
        """Hold a preset to its published number of parameters.

        Raises:
            WrongWorkError: this version of transformers builds another model.
        """
        if source.preset is not None and self._parameters != source.preset.parameters:
            raise WrongWorkError(
                f"{source.name} was built with {self._parameters:,} parameters; "
                f"it has {source.preset.parameters:,}."
            )

    @property
    def record(self) -> ModelRecord:
        """What was loaded, and how."""
        config = self._config
        return ModelRecord(
            model=self._source.name,
            backend=BACKEND,
            load_s=self.load_s,
            parameters=self._parameters,
            active_parameters=self._parameters - round(self._shape.idle_expert_parameters),
            details={
                **self._details,
                "prompts": self._prompts.description,
                "model_type": config.model_type,
                "dtype": str(self._network.dtype).removeprefix("torch."),
                "attention": getattr(config, "_attn_implementation", None),
                "experts": getattr(config, "_experts_implementation", None)
                if counting.n_experts_of(config)
                else None,
                "device": str(self._device),
                "context": self._context,
            },
        )

    @property
    def pids(self) -> tuple[int, ...]:
        """None but our own."""
        return ()

    @property
    def system(self) -> None:
        """The machine itself; the environment names it."""
        return

    @property
    def is_lost(self) -> bool:
        """Never: a call that failed leaves the model as it was."""
        return False

    @property
    def n_gpus(self) -> int:
        """How many GPUs hold a part of it."""
        devices = {parameter.device for parameter in self._network.parameters()}
        gpus: int = sum(device.type == "cuda" for device in devices)
        return self.n_ranks * gpus

    @property
    def _context(self) -> int | None:
        context = getattr(self._config, "max_position_embeddings", None)
        return None if context is None else int(context)

    def check(self, work: Work) -> str | None:
        """Warn of work beyond the trained context; refuse it where positions are learned, not computed.

        Raises:
            RequestError: a count is below one, or the positions end before the tokens do.
        """
        for name in ("tokens_in", "tokens_out", "batch_size"):
            if getattr(work, name) < 1:
                raise RequestError(f"{name} is {getattr(work, name)}; a call needs at least one.")
        tokens = work.tokens_in + work.tokens_out
        if self._context is None or tokens <= self._context:
            return None
        beyond = (
            f"{self._source.name} was trained for {self._context} tokens; {work.tokens_in} in and "
            f"{work.tokens_out} out are {tokens}"
        )
        if getattr(self._config, "rope_parameters", None) or getattr(self._config, "alibi", False):
            return f"{beyond}. It runs and costs what it costs, but its answers mean nothing there."
        raise RequestError(f"{beyond}, and it has no positions beyond. Choose smaller token counts.")

    def _in_memory(self, work: Work) -> contextlib.AbstractContextManager[None]:
        """Name a call that does not fit, with the sizes that can be counted; they are counted only then."""

        def what() -> tuple[str, int]:
            cache_b = round(counting.cache_bytes(self._shape, work))
            weights_b = int(self._network.get_memory_footprint(return_buffers=False))
            sizes = f"weights {units.format_quantity(weights_b, 'B')}"
            if cache_b:
                sizes += f", KV cache {units.format_quantity(cache_b, 'B')}"
            lengths = f"{work.batch_size} sequences of {work.tokens_in} + {work.tokens_out} tokens"
            return f"{self._source.name} with {lengths} ({sizes})", weights_b + cache_b

        return memory_named(what, "Choose a smaller batch or fewer tokens.")

    def prepare(self, work: Work) -> Request:
        """The prompts on the device: random in-vocabulary tokens, other ones in each sequence, or the user's.

        Raises:
            RequestError: none of the user's prompts is long enough, or the model has no tokenizer.
            DoesNotFitError: there is no room for them.
        """
        import torch
        from transformers import GenerationConfig

        with self._in_memory(work):
            input_ids = self._prompts.make(work).to(self._device)
            attention_mask = torch.ones_like(input_ids)
        return Request(
            work=work,
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=GenerationConfig(
                max_new_tokens=work.tokens_out,
                min_new_tokens=work.tokens_out,
                do_sample=False,
                use_cache=work.kv_cache,
                pad_token_id=0,
            ),
        )

    def generate(self, request: Request, *, on_first_token: Callable[[], None] | None = None) -> torch.Tensor:
        """Generate; returns [batch_size, tokens_in + tokens_out].

        `on_first_token` is called once, when each sequence has its first token and before the second
        is begun: the end of prefill. Without it nothing is hooked.

        Raises:
            DoesNotFitError: memory ran out; the model itself stays loaded.
        """
        import torch

        with self._in_memory(request.work), torch.inference_mode(), contextlib.ExitStack() as stack:
            if on_first_token is not None:
                stack.enter_context(_first_token_mark(self._network, on_first_token))
            output: torch.Tensor = self._network.generate(
                request.input_ids,
                attention_mask=request.attention_mask,
                generation_config=request.generation_config,
            )
        return output

    def verify(self, request: Request, output: torch.Tensor) -> int:
        """Count the generated tokens on the output.

        Raises:
            WrongWorkError: the shape is not exactly what was asked for, or the prompt is not in it.
        """
        work = request.work
        expected = (work.batch_size, work.tokens_in + work.tokens_out)
        if tuple(output.shape) != expected:
            raise WrongWorkError(
                f"{self._source.name} was asked for {work.batch_size} sequences of {work.tokens_in} + "
                f"{work.tokens_out} tokens and returned {tuple(output.shape)}."
            )
        if not bool((output[:, : work.tokens_in] == request.input_ids).all()):
            raise WrongWorkError(f"{self._source.name} returned another prompt than it was given.")
        return work.batch_size * work.tokens_out

    def timings(self, output: torch.Tensor) -> dict[str, float]:
        """Nothing: a clock inside would disturb the trial; `on_first_token` marks it on trials that ask."""
        del output
        return {}

    def account(self, work: Work, runtime_s: float) -> dict[str, Any]:
        """FLOPs and bytes the call needed, and model FLOP utilisation where the devices' peak is known.

        Raises:
            WrongWorkError: it was faster than its devices can be.
        """
        return counting.account(counting.needed(self._shape, work), runtime_s, peak=self._peak_flops_per_s())

    def _peak_flops_per_s(self) -> float | None:
        import torch

        dtype = str(self._network.dtype).removeprefix("torch.")
        peaks = [
            counting.peak_flops_per_s(torch.cuda.get_device_name(device), dtype)
            for device in {parameter.device for parameter in self._network.parameters()}
            if device.type == "cuda"
        ]
        known = [peak for peak in peaks if peak is not None]
        return self.n_ranks * sum(known) if known and len(known) == len(peaks) else None

    def answer(self, prompt: str, *, tokens_out: int) -> str:
        """What the model says to a prompt, greedily, to its end or the limit: it tells trained weights.

        Raises:
            RequestError: the model came without a tokenizer.
        """
        import torch

        tokenizer = prompts.tokenizer_of(self._source)
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(self._device)
        with torch.inference_mode():
            output = self._network.generate(
                **asked, max_new_tokens=tokens_out, do_sample=False, eos_token_id=tokenizer.eos_token_id
            )
        answer: str = tokenizer.decode(output[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer

    def close(self) -> None:
        """Free the memory."""
        import torch

        del self._network
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _first_token_mark(network: Any, mark: Callable[[], None]) -> Iterator[None]:
    """Call `mark` before the second forward pass, or at the end where there is none; then unhook."""
    passes = 0

    def before_forward(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:  # noqa: PLR2004 - the second pass begins when the first token is there
            handle.remove()
            mark()

    handle = network.register_forward_pre_hook(before_forward)
    try:
        yield
        if passes == 1:
            mark()
    finally:
        handle.remove()
