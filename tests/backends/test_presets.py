"""What is known of a model without loading it."""

import subprocess
import sys

import pytest

from pytest_llmenergy.backends import presets
from pytest_llmenergy.errors import RequestError

PAPER = {
    # The paper's Table 1: A_K in percent, A100 40 GB GPUs.
    "falcon-7b": (44.17, 1),
    "falcon-40b": (58.07, 3),
    "llama-2-7b": (50.97, 1),
    "llama-2-13b": (55.69, 1),
    "llama-2-70b": (64.52, 4),
    "mistral-7b": (60.97, 1),
    "mixtral-8x7b": (68.47, 3),
}


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=presets.PRESETS)
def test_a_preset_has_its_parameters_to_the_unit(preset):
    """Built on the meta device, a preset has its counts: all, and those one token passes through."""
    torch = pytest.importorskip("torch")
    accelerate = pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[preset.model_type](**preset.config)
    with accelerate.init_empty_weights(include_buffers=False):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.tie_weights()
    assert sum(parameter.numel() for parameter in network.parameters()) == preset.parameters
    experts = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name)
    idle_share = 1 - preset.config["num_experts_per_tok"] / _n_experts(preset) if experts else 0
    assert preset.parameters - round(experts * idle_share) == preset.active_parameters
    # Qwen3's mixture reads head_dim where it is given, though its configuration class does not list it.
    kind = CONFIG_MAPPING[preset.model_type]
    known = {*dir(kind()), *kind.attribute_map, "head_dim"}
    assert preset.config.keys() <= known  # a key the class does not know would change nothing


def _n_experts(preset):
    return preset.config.get("num_local_experts") or preset.config["num_experts"]


def test_the_cache_of_a_preset_takes_what_the_cache_holds():
    """Bytes of KV cache per token are those of the cache that generation fills, in all four families."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for name in ("tiny-llama", "tiny-mistral", "tiny-falcon", "tiny-mixtral"):
        preset = presets.PRESETS[name]
        config = CONFIG_MAPPING[preset.model_type](**preset.config)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with torch.inference_mode():
            cache = network(torch.zeros((1, 7), dtype=torch.long), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == 7 * preset.kv_bytes_per_token


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    {
        "falcon-7b": 8_192,
        "falcon-40b": 122_880,
        "llama-2-7b": 524_288,
        "llama-2-13b": 819_200,
        "llama-2-70b": 327_680,
        "mistral-7b": 131_072,
        "mixtral-8x7b": 131_072,
    }.items(),
)
def test_the_papers_models_have_their_cache_size(name, kv_bytes):
    assert presets.PRESETS[name].kv_bytes_per_token == kv_bytes


def test_accuracy_is_a_fraction_and_unknown_where_nobody_said():
    """A_K is the paper's, as a fraction; None for models it does not have."""
    for name, (accuracy_pct, _) in PAPER.items():
        assert presets.accuracy(name) == pytest.approx(accuracy_pct / 100)
    assert presets.accuracy("qwen3-8b") is None
    assert presets.accuracy("no-such-model") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Falcon (7B)", 0.4417),
        ("Llama-2 (70B)", 0.6452),
        ("Mixtral (8x7B)", 0.6847),
        ("mistralai/Mistral-7B-v0.1", 0.6097),
        ("Llama-2 (7B) chat", None),
        ("llama-2-7b-chat", None),
    ],
)
def test_table_1_and_the_hub_spell_the_same_models(name, expected):
    """Measurements published under those names find their accuracy; a relative's is not guessed."""
    assert presets.accuracy(name) == (None if expected is None else pytest.approx(expected))


def test_an_unknown_preset_names_its_neighbours():
    with pytest.raises(RequestError, match=r"'mistral7b'.*Did you mean mistral-7b"):
        presets.find("mistral7b")
    with pytest.raises(RequestError, match="Presets: tiny-llama, "):
        presets.find("zzzzzz")


def test_presets_need_no_torch():
    """The command line lists presets without the packages that run them."""
    code = (
        "import sys; import pytest_llmenergy.backends.presets;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
