"""Tensor parallelism as transformers does it: one process a rank, each with its share of every matrix.

Ours is rank 0. The others are started here, load the same model, and repeat each call of ours, so that the
collectives inside meet; run as a module, this file is such a rank.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends import Work
from pytest_llmenergy.backends.placement import ALL, AUTO
from pytest_llmenergy.backends.ranks import Ranks, environment
from pytest_llmenergy.backends.sources import Source, Weights
from pytest_llmenergy.backends.transformers_model import Request, TransformersModel
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def check_machine(n_ranks: int, device: str) -> None:
    """Refuse a machine that has not the GPUs asked for.

    Raises:
        RequestError: there are too few, or a device was named: transformers takes the first GPUs there are.
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not n_gpus:
        return  # the ranks are processes on the CPU
    if device not in (AUTO, ALL):
        raise RequestError(
            f"tensor parallelism takes the machine's first {n_ranks} GPUs, not {device}: leave "
            "--llm-energy-device out; CUDA_VISIBLE_DEVICES chooses among GPUs."
        )
    if n_gpus < n_ranks:
        raise RequestError(
            f"tensor parallelism over {n_ranks} GPUs was asked for; torch can use {n_gpus} here. "
            "Lower --llm-energy-tensor-parallel."
        )


def check(network: Any, name: str, n_ranks: int) -> None:
    """Refuse a model that cannot be shared out, before any process is started.

    Raises:
        RequestError: the architecture has no plan, or its heads do not divide.
    """
    if not network.supports_tp_plan:
        raise RequestError(
            f"{name}: transformers has no tensor-parallel plan for {network.config.model_type!r}. Leave "
            "--llm-energy-tensor-parallel out; --llm-energy-device all splits it by layers."
        )
    config = network.config.get_text_config()
    for what in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, what, None)
        if heads is not None and heads % n_ranks:
            raise RequestError(
                f"{name}: {what} is {heads}, which {n_ranks} processes cannot share evenly. "
                "Choose a --llm-energy-tensor-parallel that divides it."
            )


def load(
    source: Source,
    directory: Path,
    *,
    dtype: str,
    n_ranks: int,
    details: dict[str, Any],
    trust_remote_code: bool = False,
) -> TensorParallelModel:
    """Start the other ranks, and load our share with them.

    Args:
        source: what the model is called.
        directory: holds it as save_pretrained writes it; read while this runs and not after.
        dtype: as torch names it.
        n_ranks: processes, ours included.
        details: for the model's record.
        trust_remote_code: run code that the directory brings.

    Raises:
        EngineError: a rank has ended before all was loaded.
    """
    with contextlib.ExitStack() as stack:
        asked: dict[str, Any] = {"dtype": dtype, "n_ranks": n_ranks, "trust_remote_code": trust_remote_code}
        stack.enter_context(environment(n_ranks))
        ranks = Ranks(__name__, {"directory": str(directory), **asked}, n_ranks)
        stack.callback(_leave_group)
        stack.callback(ranks.close)
        network = ranks.beside(lambda: _shard(directory, **asked))
        placed = {"placement": "tensor parallel", "tensor_parallel": n_ranks}
        loaded = TensorParallelModel(network, source=source, details={**details, **placed}, ranks=ranks)
        loaded.expect_parameters(source)
        loaded.held = stack.pop_all()
        return loaded


class TensorParallelModel(TransformersModel):
    """Our share of a model, and the processes that have the others."""

    def __init__(self, network: Any, *, source: Source, details: dict[str, Any], ranks: Ranks) -> None:
        super().__init__(network, source=source, load_s=0.0, details=details)
        self.n_ranks = ranks.n_ranks
        self._ranks = ranks
        self._is_lost = False
        self.held = contextlib.ExitStack()  # what ends with the model

    def generate(self, request: Request, *, on_first_token: Callable[[], None] | None = None) -> torch.Tensor:
        """Generate with every rank; returns [batch_size, tokens_in + tokens_out].

        Raises:
            EngineError: a rank has ended.
        """
        generate = super().generate
        self._is_lost = True  # unless all is well: ranks that are not in step would compute nonsense
        self._ranks.send(asdict(request.work))
        output: torch.Tensor = self._ranks.beside(lambda: generate(request, on_first_token=on_first_token))
        self._is_lost = False
        return output

    @property
    def is_lost(self) -> bool:
        """Whether a rank has ended, or did not finish a call."""
        return self._is_lost

    def close(self) -> None:
        """End the other ranks and free the memory."""
        super().close()
        self.held.close()


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _shard(directory: Path, *, dtype: str, n_ranks: int, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    network = AutoModelForCausalLM.from_pretrained(
        directory,
        distributed_config=DistributedConfig(tp_size=n_ranks),
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=trust_remote_code,
    )
    torch.distributed.barrier()  # the directory may go once every rank has read it
    return network


def _be_a_rank(asked: dict[str, Any]) -> None:
    """Load our share, then do every call that is sent, until the sender has no more."""
    import torch

    torch.set_num_threads(1)
    directory = Path(asked.pop("directory"))
    network = _shard(directory, **asked)
    source = Source(name=str(directory), weights=Weights.TRAINED, directory=directory)
    model = TransformersModel(network, source=source, load_s=0.0, details={})
    for line in sys.stdin:
        model.generate(model.prepare(Work(**json.loads(line))))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _be_a_rank(json.loads(sys.argv[1]))
