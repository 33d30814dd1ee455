"""Random weights that behave like trained ones: N(0, 0.02), norms one, biases zero.

The values matter: U(0, 1) collapses the activations and sends every token to the same experts, and data
values move a GPU's power. On a CPU a pool of values is drawn once, and each block of a matrix is a stretch
of the pool from a place of its own: copying is several times as fast as drawing, no two matrices are alike,
and the same seed gives the same weights on any number of threads.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends import counting
from pytest_llmenergy.errors import WrongWorkError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

STANDARD_DEVIATION = 0.02
_BLOCK = 1 << 20
_POOL = 1 << 24


def materialise(model: torch.nn.Module, *, seed: int, device_of: Callable[[str], torch.device]) -> None:
    """Give every meta parameter storage on its device, tie, and fill; no parameter exists twice.

    Buffers are left alone: rotary frequencies were computed when the model was built, and must stay.
    """
    import torch

    for module_name, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                device = device_of(f"{module_name}.{name}" if module_name else name)
                storage = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                setattr(module, name, torch.nn.Parameter(storage, requires_grad=False))
    tie = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()
    fill(model.named_parameters(), seed=seed)


def fill(parameters: Iterable[tuple[str, torch.Tensor]], *, seed: int) -> None:
    """Fill parameters in place: on the CPU in parallel, on a GPU by its own generator."""
    import torch

    jobs: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for name, parameter in parameters:
            tensor = parameter.detach()
            if tensor.ndim < 2:  # noqa: PLR2004 - vectors are norms and biases
                tensor.fill_(0.0 if name.endswith("bias") else 1.0)
            elif tensor.device.type == "cpu":
                jobs.extend(_stretches(tensor, _pool(tensor.dtype, seed), f"{seed}/{name}"))
            else:
                generator = torch.Generator(tensor.device).manual_seed(_seed_of(f"{seed}/{name}"))
                tensor.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    with ThreadPoolExecutor(max_workers=_cpus(), thread_name_prefix="llmenergy-weights") as pool:
        for _ in pool.map(lambda job: _copy(*job), jobs):
            pass
    _pool.cache_clear()


def probe(network: Any, *, seed: int) -> dict[str, Any]:
    """Pass random tokens once through a model; how its logits and its experts behave.

    Returns:
        `logits_std`, and for a mixture of experts `expert_balance`: how many of its `experts` a layer used
        at least (`used_min`) over so many `tokens` routed to `top_k`, and the share of the choices that
        the busiest expert of any layer took (`busiest_share`; even would be `even_share`).

    Raises:
        WrongWorkError: a logit is not finite.
    """
    import torch

    config = network.config.get_text_config()
    n_experts = counting.n_experts_of(config)
    generator = torch.Generator().manual_seed(_seed_of(f"{seed}/probe"))
    tokens = torch.randint(int(config.vocab_size), (4, 64 if n_experts else 8), generator=generator)
    device = next(network.parameters()).device
    with torch.inference_mode():
        more = {"output_router_logits": True} if n_experts else {}
        output = network(tokens.to(device), use_cache=False, **more)
    if not bool(torch.isfinite(output.logits).all()):
        raise WrongWorkError("the model's logits are not finite: its weights cannot be right.")
    found: dict[str, Any] = {"logits_std": float(output.logits.float().std())}
    routers = getattr(output, "router_logits", None)
    if n_experts and routers:
        top_k = int(config.num_experts_per_tok)
        counts = [
            torch.bincount(logits.topk(top_k, dim=-1).indices.flatten(), minlength=n_experts)
            for logits in routers
        ]
        found["expert_balance"] = {
            "tokens": tokens.numel(),
            "experts": n_experts,
            "top_k": top_k,
            "used_min": min(int((count > 0).sum()) for count in counts),
            "busiest_share": max(float(count.max() / count.sum()) for count in counts),
            "even_share": 1 / n_experts,
        }
    return found


def _stretches(
    tensor: torch.Tensor, pool: torch.Tensor, label: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The blocks of a tensor, each with its stretch of the pool."""
    flat = tensor.view(-1)
    for index, start in enumerate(range(0, flat.numel(), _BLOCK)):
        block = flat[start : start + _BLOCK]
        place = _seed_of(f"{label}/{index}") % (pool.numel() - block.numel() + 1)
        yield block, pool[place : place + block.numel()]


def _copy(block: torch.Tensor, stretch: torch.Tensor) -> None:
    # Not block.copy_: torch would share each of our threads' work among threads of its own.
    import torch

    as_bytes = torch.uint8
    block.view(as_bytes).numpy()[:] = stretch.view(as_bytes).numpy()


@cache
def _pool(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Values of N(0, 0.02), of which all matrices are made."""
    import numpy as np
    import torch

    bits = np.random.SFC64(_seed_of(f"{seed}/pool"))
    drawn = bits.random_raw(_POOL // 4).view(np.uint16)
    return torch.index_select(_quantiles(dtype), 0, torch.from_numpy(drawn.astype(np.int32)))


@cache
def _quantiles(dtype: torch.dtype) -> torch.Tensor:
    """The normal distribution as 65,536 equally likely values, so that 16 random bits draw one of them.

    It is twice as fast as drawing normals, and bf16 tells no more values apart.
    """
    import torch

    probabilities = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles: torch.Tensor = STANDARD_DEVIATION * torch.special.ndtri(probabilities)
    return quantiles.to(dtype)


def _seed_of(label: str) -> int:
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=7).digest())


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
