"""Hugging Face transformers: models built or loaded, and placed by Accelerate."""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends import placement, prompts, sources, tensor_parallel, weights
from pytest_llmenergy.backends.placement import Placement
from pytest_llmenergy.backends.problems import memory_named, problems_named
from pytest_llmenergy.backends.transformers_model import BACKEND, TransformersModel
from pytest_llmenergy.errors import DocumentError, RequestError, require

if TYPE_CHECKING:
    from collections.abc import Iterator

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


class TransformersBackend:
    """Loads models of a Hugging Face architecture onto this machine."""

    name = BACKEND

    def __init__(
        self,
        *,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        offload: bool = False,
        n_ranks: int = 1,
        user_prompts: tuple[str, ...] = (),
    ) -> None:
        if dtype is not None and dtype not in _DTYPES:
            raise RequestError(
                f"there is no dtype {dtype!r}; take {', '.join(sorted(set(_DTYPES.values())))}."
            )
        if threads is not None and threads < 1:
            raise RequestError(f"a model needs at least one thread, not {threads}.")
        self._dtype = dtype
        self._device = device or placement.AUTO
        self._offload = offload
        self._n_ranks = n_ranks
        self._prompts = user_prompts
        self._threads = threads
        self._threads_of_machine: int | None = None
        self._seed = seed
        self._trust_remote_code = trust_remote_code

    def find(self, model: str) -> Source:
        """Look for its preset, files or cache entry, and whether it can be had as it is asked for.

        torch is imported only where a GPU or tensor parallelism was asked for.

        Raises:
            RequestError: there is no such model or device here, or a setting does not go with it.
        """
        source = sources.find(model)
        placement.check_device(self._device)
        if self._prompts and source.directory is None:
            raise prompts.no_tokenizer(source.name)
        if self._n_ranks > 1:
            self._find_in_parallel(source)
        return source

    def _find_in_parallel(self, source: Source) -> None:
        if self._prompts:
            raise RequestError(
                "prompts of your own are not shared out between processes: leave "
                "--llm-energy-prompts or --llm-energy-tensor-parallel out."
            )
        if source.gguf_file is not None:
            raise RequestError(
                f"{source.name} is a GGUF file, which has no tensor parallelism here: leave "
                "--llm-energy-tensor-parallel out."
            )
        torch = _packages()
        tensor_parallel.check_machine(self._n_ranks, self._device)
        with problems_named(source.name):
            tensor_parallel.check(self._meta(source, torch.bfloat16), source.name, self._n_ranks)

    def load(self, model: str) -> TransformersModel:
        """Load a model by preset name, local directory, GGUF file or hub id in the cache.

        Raises:
            RequestError: there is no such model here, or it is none transformers knows.
            DoesNotFitError: it needs more memory than there is.
        """
        torch = _packages()
        source = self.find(model)
        if source.note:
            warnings.warn(source.note, stacklevel=2)
        started_s = time.perf_counter()
        tiny = source.preset is not None and source.preset.tiny
        # Two OpenMP threads on a matrix of 64 columns spend their time waiting for each other.
        if self._threads_of_machine is None:
            self._threads_of_machine = torch.get_num_threads()
        threads = self._threads or (1 if tiny else self._threads_of_machine)
        torch.set_num_threads(threads)
        details: dict[str, Any] = {"weights": source.weights.value}
        if self._n_ranks > 1:
            return self._load_in_parallel(source, details, tiny=tiny)
        with problems_named(source.name), memory_named(lambda: (source.name, None), _SMALLER):
            if source.weights is sources.Weights.RANDOM:
                network, placed = self._build(source, tiny=tiny)
                details |= {"weights_seed": self._seed, **weights.probe(network, seed=self._seed)}
            else:
                network, placed = self._load_trained(source)
        if placed.main_device == "cpu":
            details["threads"] = threads
        details |= {"placement": placed.kind, "device_map": placed.summary()}
        loaded = TransformersModel(
            network,
            source=source,
            load_s=time.perf_counter() - started_s,
            details=details,
            user_prompts=self._prompts,
        )
        loaded.expect_parameters(source)
        return loaded

    def _load_in_parallel(self, source: Source, details: dict[str, Any], *, tiny: bool) -> TransformersModel:
        """Load through transformers' own tensor parallelism, which takes a model from a directory alone."""
        import torch

        started_s = time.perf_counter()
        on_cpu = self._device == "cpu" or not torch.cuda.is_available()
        with contextlib.ExitStack() as stack:
            stack.enter_context(problems_named(source.name))
            stack.enter_context(memory_named(lambda: (source.name, None), _SMALLER))
            default = "float32" if tiny and on_cpu else "bfloat16"
            dtype = _DTYPES[self._dtype or default]
            network = self._meta(source, getattr(torch, dtype))
            directory = source.directory
            if source.weights is sources.Weights.RANDOM or directory is None:
                network.tie_weights()
                placement.place(network, placement.free_room(), name=source.name, device="cpu")
                weights.materialise(network, seed=self._seed, device_of=lambda _: torch.device("cpu"))
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmenergy-")))
                with _no_progress_bars():
                    network.save_pretrained(directory)
                details["weights_seed"] = self._seed
            del network
            with _no_progress_bars():
                loaded = tensor_parallel.load(
                    source,
                    directory,
                    dtype=dtype,
                    n_ranks=self._n_ranks,
                    details=details,
                    trust_remote_code=self._trust_remote_code,
                )
        loaded.load_s = time.perf_counter() - started_s
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


def _packages() -> Any:
    """torch, where all is installed that runs a model.

    Raises:
        MissingExtraError: something is not.
    """
    for name in ("transformers", "accelerate"):
        require(name, feature="Running a model", extra="models")
    return require("torch", feature="Running a model", extra="models")


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
