"""Hugging Face transformers: exactly the tokens asked for, with or without a KV cache."""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmenergy import units
from pytest_llmenergy.backends import counting, placement, sources, weights
from pytest_llmenergy.backends.placement import Placement
from pytest_llmenergy.errors import (
    DocumentError,
    DoesNotFitError,
    LLMEnergyError,
    RequestError,
    WrongWorkError,
    require,
)
from pytest_llmenergy.records import ModelRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from pytest_llmenergy.backends import Work
    from pytest_llmenergy.backends.sources import Source

_DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
}


_SMALLER = "Free memory, or take a smaller model or dtype."


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one call takes."""

    work: Work
    input_ids: torch.Tensor  # [batch_size, tokens_in]
    attention_mask: torch.Tensor  # [batch_size, tokens_in], all ones: nothing is padded
    generation_config: Any


class TransformersBackend:
    """Loads models of a Hugging Face architecture onto this machine."""

    name = "transformers"

    def __init__(
        self,
        *,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        offload: bool = False,
    ) -> None:
        torch = require("torch", feature="Running a model", extra="models")
        require("transformers", feature="Running a model", extra="models")
        require("accelerate", feature="Running a model", extra="models")
        if dtype is not None and dtype not in _DTYPES:
            raise RequestError(
                f"there is no dtype {dtype!r}; take {', '.join(sorted(set(_DTYPES.values())))}."
            )
        if threads is not None and threads < 1:
            raise RequestError(f"a model needs at least one thread, not {threads}.")
        self._dtype = dtype
        self._device = device or placement.AUTO
        self._offload = offload
        self._threads = threads
        self._threads_of_machine = torch.get_num_threads()
        self._seed = seed
        self._trust_remote_code = trust_remote_code

    def find(self, model: str) -> None:
        """Look for its preset, files or cache entry.

        Raises:
            RequestError: there is no such model here.
        """
        sources.find(model)

    def load(self, model: str) -> TransformersModel:
        """Load a model by preset name, local directory, GGUF file or hub id in the cache.

        Raises:
            RequestError: there is no such model here, or it is none transformers knows.
            DoesNotFitError: it needs more memory than there is.
        """
        import torch

        source = sources.find(model)
        if source.note:
            warnings.warn(source.note, stacklevel=2)
        started_s = time.perf_counter()
        tiny = source.preset is not None and source.preset.tiny
        # Two OpenMP threads on a matrix of 64 columns spend their time waiting for each other.
        threads = self._threads or (1 if tiny else self._threads_of_machine)
        torch.set_num_threads(threads)
        details: dict[str, Any] = {"weights": source.weights.value}
        with _problems_named(source), _memory_named(lambda: (source.name, None), _SMALLER):
            if source.weights is sources.Weights.RANDOM:
                network, placed = self._build(source, tiny=tiny)
                details |= {"weights_seed": self._seed, **weights.probe(network, seed=self._seed)}
            else:
                network, placed = self._load_trained(source)
        if placed.main_device == "cpu":
            details["threads"] = threads
        details |= {"placement": placed.kind, "device_map": placed.summary()}
        loaded = TransformersModel(
            network, source=source, load_s=time.perf_counter() - started_s, details=details
        )
        loaded.expect_parameters(source)
        return loaded

    def _place(self, network: Any, source: Source) -> Placement:
        network.tie_weights()
        return placement.place(
            network, placement.free_room(), name=source.name, device=self._device, offload=self._offload
        )

    def _meta(self, source: Source, dtype: Any) -> Any:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        config = _config_of(source, trust_remote_code=self._trust_remote_code)
        # Buffers are real, so that rotary frequencies hold what the architecture computes for them.
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=self._trust_remote_code
            )

    def _build(self, source: Source, *, tiny: bool) -> tuple[Any, Placement]:
        import torch
        from accelerate import dispatch_model

        on_cpu = self._device == "cpu" or not torch.cuda.is_available()
        default = "float32" if tiny and on_cpu else "bfloat16"
        network = self._meta(source, getattr(torch, _DTYPES[self._dtype or default]))
        placed = self._place(network, source)
        weights.materialise(
            network, seed=self._seed, device_of=lambda name: torch.device(placed.device_of(name))
        )
        if placed.kind == placement.ONE_DEVICE:
            return network.to(placed.main_device), placed  # the buffers; the weights are there
        return dispatch_model(network, placed.device_map, main_device=placed.main_device), placed

    def _load_trained(self, source: Source) -> tuple[Any, Placement]:
        import torch
        import transformers

        dtype = None if self._dtype is None else getattr(torch, _DTYPES[self._dtype])
        more: dict[str, Any] = {}
        if source.gguf_file is not None:
            on_cpu = placement.one_device(self._device) == "cpu"
            dtype = dtype or (torch.float32 if on_cpu else torch.bfloat16)
            # Packed weights need kernels that are not everywhere: the record's dtype shall be what was run.
            if hasattr(transformers, "GgufConfig"):
                more["quantization_config"] = transformers.GgufConfig(dequantize=True)
        if source.config is None:  # a GGUF file tells its architecture only when it is read
            placed = Placement(device_map={"": placement.one_device(self._device)}, kind=placement.ONE_DEVICE)
        else:
            placed = self._place(self._meta(source, dtype or _dtype_of(source.config)), source)
        with _no_progress_bars():
            network = transformers.AutoModelForCausalLM.from_pretrained(
                source.directory,
                gguf_file=source.gguf_file,
                dtype=dtype or "auto",
                device_map=placed.device_map,
                local_files_only=True,
                trust_remote_code=self._trust_remote_code,
                **more,
            )
        return network, placed


def _dtype_of(config: dict[str, Any]) -> Any:
    import torch

    named = config.get("dtype") or config.get("torch_dtype")
    return getattr(torch, named) if isinstance(named, str) and named in _DTYPES else torch.float32


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the terminal for the campaign's own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config_of(source: Source, *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if source.model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[source.model_type](**(source.config or {}))
    if source.config is not None and "auto_map" in source.config:
        if trust_remote_code:
            return AutoConfig.from_pretrained(source.directory, trust_remote_code=True, local_files_only=True)
        raise RequestError(
            f"{source.name} brings its own code (model type {source.model_type!r}). "
            "Pass trust_remote_code=True if you have read and trust it."
        )
    raise DocumentError(
        source.directory or source.name,
        f"is of model type {source.model_type!r}, which this version of transformers does not know.",
        "Upgrade transformers, or check the name.",
    )


@contextlib.contextmanager
def _problems_named(source: Source) -> Iterator[None]:
    """Turn what transformers raises on a model it cannot load into one message of ours."""
    try:
        yield
    except LLMEnergyError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise RequestError(f"{source.name} cannot be loaded: {_first_line(error)}") from error


@contextlib.contextmanager
def _memory_named(what: Callable[[], tuple[str, int | None]], remedy: str) -> Iterator[None]:
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
            f"{name} does not fit: {_first_line(error)} {remedy}",
            needed_b=needed_b,
            available_b=sum(room.gpus_b.values()) if on_gpu else room.cpu_b,
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


class TransformersModel:
    """A loaded model."""

    def __init__(self, network: Any, *, source: Source, load_s: float, details: dict[str, Any]) -> None:
        from transformers import GenerationConfig

        self._network = network.eval()
        # A generation config passed to generate() is refilled from the model's own, EOS included: replace
        # that one, so that nothing but the length ends a sequence.
        network.generation_config = GenerationConfig(pad_token_id=0)
        self._source = source
        self._load_s = load_s
        self._details = details
        self._config = network.config.get_text_config()
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
            backend=TransformersBackend.name,
            load_s=self._load_s,
            parameters=self._parameters,
            active_parameters=self._parameters - round(self._shape.idle_expert_parameters),
            details={
                **self._details,
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
    def n_gpus(self) -> int:
        """How many GPUs hold a part of it."""
        devices = {parameter.device for parameter in self._network.parameters()}
        return sum(device.type == "cuda" for device in devices)

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

        return _memory_named(what, "Choose a smaller batch or fewer tokens.")

    def prepare(self, work: Work) -> Request:
        """Random in-vocabulary tokens, other ones in each sequence, on the device.

        Raises:
            DoesNotFitError: there is no room for them.
        """
        with self._in_memory(work):
            return self._request(work)

    def _request(self, work: Work) -> Request:
        import torch
        from transformers import GenerationConfig

        vocabulary = int(self._config.vocab_size)
        generator = torch.Generator().manual_seed(work.seed)
        shape = (work.batch_size, work.tokens_in)
        input_ids = torch.randint(vocabulary, shape, generator=generator)
        # First tokens are drawn without replacement: no two sequences of a batch are equal, however short.
        first = torch.randperm(vocabulary, generator=generator).repeat(-(-work.batch_size // vocabulary))
        input_ids[:, 0] = first[: work.batch_size]
        input_ids = input_ids.to(self._device)
        return Request(
            work=work,
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
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
        return sum(known) if known and len(known) == len(peaks) else None

    def answer(self, prompt: str, *, tokens_out: int) -> str:
        """What the model says to a prompt, greedily, to its end or the limit: it tells trained weights.

        Raises:
            RequestError: the model came without a tokenizer.
        """
        import torch

        tokenizer = self._tokenizer()
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

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        if self._source.directory is None:
            raise RequestError(
                f"{self._source.name} has random weights and no tokenizer. Take a trained model."
            )
        with _problems_named(self._source):
            return AutoTokenizer.from_pretrained(
                self._source.directory, gguf_file=self._source.gguf_file, local_files_only=True
            )

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
