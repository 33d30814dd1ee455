"""What a call needs in physical terms: floating-point operations and bytes, by counting.

Counted is what the answer needs, not what a kernel does: a multiply and an add for each weight a token passes
through, four operations a head dimension for each pair of positions attended (QK and AV, causal), the output
layer for the last position of a step alone, weights read once a step for the whole batch, and the cache.
Everything left out (norms, rotary, softmax, activations' traffic) only adds, so both counts are lower bounds,
and a call that needed less time than its FLOPs take at the device's peak did not do the work.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends.architecture import CACHE_KEYS, kv_elements_per_token_and_layer
from pytest_llmenergy.errors import WrongWorkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llmenergy.backends import Work

# Dense peaks in FLOP/s of 16-bit matrix units with 32-bit sums, by a part of the name that NVML and torch
# give, the more special name first. From the makers' data sheets, the figures without sparsity.
_PEAK_FLOPS_PER_S_16BIT = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 836e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A30", 165e12),
    ("A40", 150e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("T4", 65e12),
    ("V100", 125e12),
    ("MI300X", 1307e12),
    ("MI250X", 383e12),
    ("RTX A6000", 155e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The figures of a model that its work is counted from."""

    linear_parameters: int  # in matrices every token passes through, routers included; no embedding, no head
    expert_parameters: int = 0  # in routed experts, over all of them
    n_experts: int = 1
    experts_per_token: int = 1
    head_parameters: int  # hidden size x vocabulary
    attention_dims: int  # query heads x head dimension, in each layer that attends
    windows: Mapping[int | None, int]  # window -> layers that have it; None attends to everything before
    kv_elements_per_token_and_layer: int  # keys and values
    bytes_per_weight: float
    bytes_per_kv_element: float

    @property
    def active_parameters(self) -> float:
        """Parameters in the matrices one token passes through, head apart."""
        return self.linear_parameters + self.expert_parameters - self.idle_expert_parameters

    @property
    def idle_expert_parameters(self) -> float:
        """Parameters of the experts that one token is not routed to."""
        return self.expert_parameters * (1 - self.experts_per_token / self.n_experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What one call of the whole batch needs, at least."""

    flops: float
    bytes: float  # read from and written to the device's memory: weights and cache


def needed(shape: Shape, work: Work) -> Needed:
    """Count one call (docs/models.md has the sums written out)."""
    flops = bytes_ = 0.0
    for step in range(work.tokens_out):
        context = work.tokens_in + step
        # With a cache the first step passes the prompt and each later one the last token alone.
        passed = 1 if work.kv_cache and step else context
        pairs = sum(n * _pairs(context, passed, window) for window, n in shape.windows.items())
        flops += 2.0 * passed * shape.active_parameters + 2.0 * shape.head_parameters
        flops += 4.0 * shape.attention_dims * pairs
        weights: float = shape.linear_parameters + shape.head_parameters
        weights += _experts_read(shape, passed * work.batch_size)
        bytes_ += shape.bytes_per_weight * weights
        if work.kv_cache:
            # Keys and values are read of what came before, as far as the window reaches, and written once.
            moved = sum(n * (_within(context - passed, w) + passed) for w, n in shape.windows.items())
            elements = shape.kv_elements_per_token_and_layer * moved
            bytes_ += shape.bytes_per_kv_element * elements * work.batch_size
    return Needed(flops=flops * work.batch_size, bytes=bytes_)


def _within(context: int, window: int | None) -> int:
    return context if window is None else min(context, window)


def _pairs(context: int, passed: int, window: int | None) -> int:
    """Pairs that the last `passed` of `context` positions attend to, each to itself and those before it."""
    reach = _within(context, window)
    first = context - passed + 1  # how many positions the first of them could attend to
    growing = max(0, min(context, reach) - first + 1)  # of them see fewer than the window holds
    sum_growing = growing * first + growing * (growing - 1) // 2
    return sum_growing + (passed - growing) * reach


def _experts_read(shape: Shape, tokens: int) -> float:
    """Expert parameters that so many tokens touch, if each picks its experts evenly."""
    missed = (1 - shape.experts_per_token / shape.n_experts) ** tokens
    return shape.expert_parameters * (1 - missed)


def cache_bytes(shape: Shape, work: Work) -> float:
    """Bytes of the KV cache at the end of a call, over the batch; none without one."""
    if not work.kv_cache:
        return 0.0
    positions = work.tokens_in + work.tokens_out - 1
    held = sum(n * _within(positions, window) for window, n in shape.windows.items())
    return shape.bytes_per_kv_element * shape.kv_elements_per_token_and_layer * held * work.batch_size


def peak_flops_per_s(device_name: str, dtype: str) -> float | None:
    """The dense peak of one device in FLOP/s; None where it is not known.

    A float32 product may run on the TF32 units, which have half the 16-bit rate: that is its ceiling.
    """
    peak = next((peak for part, peak in _PEAK_FLOPS_PER_S_16BIT if part.lower() in device_name.lower()), None)
    if peak is None or dtype not in ("bfloat16", "float16", "float32"):
        return None
    return peak / 2 if dtype == "float32" else peak


def account(what: Needed, runtime_s: float, *, peak: float | None) -> dict[str, Any]:
    """FLOPs, bytes and model FLOP utilisation (PaLM, arXiv 2204.02311, appendix B) of a call.

    Args:
        what: the call's count.
        runtime_s: how long it took.
        peak: of all devices it ran on together, in FLOP/s; None where unknown.

    Raises:
        WrongWorkError: it was faster than the devices can be.
    """
    flops_per_s = what.flops / runtime_s if runtime_s > 0 else float("inf")
    if peak is not None and flops_per_s > peak:
        raise WrongWorkError(
            f"a call that needs {what.flops:.3g} FLOP took {runtime_s:.3g} s: {flops_per_s:.3g} FLOP/s, and "
            f"the device's peak is {peak:.3g}. It did not do the work, or was not waited for."
        )
    return {
        "flops": what.flops,
        "bytes": what.bytes,
        "flops_per_s": flops_per_s,
        "peak_flops_per_s": peak,
        "mfu": None if peak is None else flops_per_s / peak,
    }


def shape_of(network: Any) -> Shape:
    """Read the figures off a loaded model of transformers, whatever its architecture."""
    import torch

    config = network.config.get_text_config()
    tables = {id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)}
    head = network.get_output_embeddings()
    skipped = tables if head is None else {*tables, id(head.weight)}
    linear = experts = 0
    for name, module in network.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or id(parameter) in skipped:  # noqa: PLR2004 - vectors
                continue
            # A packed (quantised) matrix has fewer elements than it has weights.
            packed = isinstance(module, torch.nn.Linear) and parameter_name == "weight"
            count = module.in_features * module.out_features if packed else parameter.numel()
            if ".experts" in name:
                experts += count
            else:
                linear += count
    heads = int(config.num_attention_heads)
    return Shape(
        linear_parameters=linear,
        expert_parameters=experts,
        n_experts=n_experts_of(config) or 1,
        experts_per_token=int(config.num_experts_per_tok) if experts else 1,
        head_parameters=int(config.hidden_size) * int(config.vocab_size),
        attention_dims=heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        windows=_windows_of(config),
        kv_elements_per_token_and_layer=kv_elements_per_token_and_layer(
            {key: getattr(config, key, None) for key in CACHE_KEYS}
        ),
        bytes_per_weight=network.get_memory_footprint(return_buffers=False)
        / max(1, network.num_parameters()),
        bytes_per_kv_element=float(network.dtype.itemsize),
    )


def n_experts_of(config: Any) -> int | None:
    """Routed experts in a layer, by whichever name the architecture gives them; None where it has none."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(n) for name in names if (n := getattr(config, name, None))), None)


def _windows_of(config: Any) -> dict[int | None, int]:
    layers = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {window: layers}
    counts = Counter({"sliding_attention": window, "full_attention": None}.get(k, 0) for k in kinds)
    del counts[0]  # layers that keep a state in place of a context attend to no pairs
    return dict(counts)
