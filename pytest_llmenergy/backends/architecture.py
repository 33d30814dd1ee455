"""What is known of an architecture before it is built: the figures it is held to, and its cache.

This module and the table of presets import neither torch nor transformers, so that a command line can list
them anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_BF16 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One architecture, with the figures it is checked against."""

    name: str
    model_type: str  # as transformers names it
    config: Mapping[str, Any]  # arguments of that type's configuration class
    parameters: int  # tied embeddings counted once
    active_parameters: int  # those one token passes through: all, but in a mixture of experts
    hub_id: str | None = None  # where its trained weights are published; nothing is downloaded
    accuracy_pct: float | None = None  # A_K of the paper's Table 1, in percent
    paper_gpus: int | None = None  # A100 40 GB GPUs of the paper's Table 1
    paper_memory_gb: float | None = None  # vRAM of the paper's Table 1
    package: str | None = None  # the Python package that brings its trained weights, as one GGUF file
    tiny: bool = False  # made for tests and machines without a GPU

    @property
    def context(self) -> int:
        """Tokens it was trained for, prompt and answer together, per sequence."""
        return int(self.config["max_position_embeddings"])

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache one token of one sequence takes, in a 2-byte type such as bf16."""
        per_layer = kv_elements_per_token_and_layer(self.config)
        return per_layer * int(self.config["num_hidden_layers"]) * BYTES_BF16

    @property
    def memory_b(self) -> int:
        """Bytes of its weights in a 2-byte type such as bf16."""
        return self.parameters * BYTES_BF16


CACHE_KEYS = (
    "num_attention_heads",
    "hidden_size",
    "head_dim",
    "num_key_value_heads",
    "num_kv_heads",
    "new_decoder_architecture",
    "multi_query",
)


def kv_elements_per_token_and_layer(config: Mapping[str, Any]) -> int:
    """Keys and values one token of one sequence leaves in a layer, from the `CACHE_KEYS` of a config.

    Falcon says its number of KV heads in its own words: one for all queries, unless it is of the new kind.
    """
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    if config.get("num_key_value_heads") is not None:
        kv_heads = int(config["num_key_value_heads"])
    elif config.get("new_decoder_architecture"):
        kv_heads = int(config.get("num_kv_heads") or heads)
    else:
        kv_heads = 1 if config.get("multi_query") else heads
    return 2 * kv_heads * head_dim
