"""What goes where, planned on shapes for machines that are not at hand."""

from functools import cache

import pytest

from pytest_llmenergy.backends import Work, placement, presets
from pytest_llmenergy.backends.placement import Room
from pytest_llmenergy.errors import DoesNotFitError, RequestError

torch = pytest.importorskip("torch")

PAPER_GPUS = {
    "falcon-7b": 1,
    "falcon-40b": 3,
    "llama-2-7b": 1,
    "llama-2-13b": 1,
    "llama-2-70b": 4,
    "mistral-7b": 1,
    "mixtral-8x7b": 3,
}


@cache
def meta(name):
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    preset = presets.PRESETS[name]
    config = CONFIG_MAPPING[preset.model_type](**preset.config)
    with init_empty_weights(include_buffers=False):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.tie_weights()
    return network


def room(gpus, gpu_gb=40, cpu_gb=64):
    return Room(gpus_b=dict.fromkeys(range(gpus), int(gpu_gb * 1e9)), cpu_b=int(cpu_gb * 1e9))


@pytest.mark.parametrize(("name", "gpus"), PAPER_GPUS.items())
def test_the_papers_gpu_counts_come_out(name, gpus):
    """Table 1: on eight A100 40 GB, Accelerate's split and our own sum need as many as the paper."""
    assert presets.PRESETS[name].paper_gpus == gpus
    assert placement.gpus_needed(presets.PRESETS[name], 40e9) == gpus
    placed = placement.place(meta(name), room(8), name=name)
    assert len(set(placed.device_map.values())) == gpus
    assert placed.kind == ("layer split" if gpus > 1 else "one device")


def test_every_parameter_of_a_split_has_a_gpu():
    placed = placement.place(meta("mixtral-8x7b"), room(3), name="mixtral-8x7b")
    devices = {placed.device_of(name) for name, _ in meta("mixtral-8x7b").named_parameters()}
    assert devices == {0, 1, 2}
    assert placed.main_device == 0
    assert set(placed.summary()) == {"cuda:0", "cuda:1", "cuda:2"}


def test_all_spreads_a_model_that_one_gpu_would_hold():
    placed = placement.place(meta("mistral-7b"), room(2), name="mistral-7b", device="all")
    assert set(placed.device_map.values()) == {0, 1}
    assert placed.kind == "layer split"


def test_a_machine_without_a_gpu_takes_the_cpu():
    assert placement.place(meta("mistral-7b"), room(0), name="m").device_map == {"": "cpu"}


def test_a_model_beyond_the_memory_says_both_sizes():
    """The message has what it takes and what is free; the error has them in bytes."""
    with pytest.raises(DoesNotFitError, match=r"llama-2-70b.*138 GB.*64\.0 GB are free in memory") as caught:
        placement.place(meta("llama-2-70b"), room(0), name="llama-2-70b")
    assert caught.value.needed_b == 2 * presets.PRESETS["llama-2-70b"].parameters
    assert caught.value.available_b == 64_000_000_000


def test_offload_is_refused_unless_asked_for():
    """Three GPUs hold no 70B model; the rest goes to the machine's memory only when the user says so."""
    with pytest.raises(DoesNotFitError, match=r"138 GB.*114 GB are free on 3 GPUs.*ask for CPU offload"):
        placement.place(meta("llama-2-70b"), room(3), name="llama-2-70b")
    placed = placement.place(meta("llama-2-70b"), room(3), name="llama-2-70b", offload=True)
    assert placed.kind == "CPU offload"
    assert set(placed.device_map.values()) == {0, 1, 2, "cpu"}


def test_an_offload_beyond_the_memory_is_refused_too():
    with pytest.raises(DoesNotFitError, match="on its GPUs and in memory"):
        placement.place(meta("llama-2-70b"), room(1, cpu_gb=8), name="llama-2-70b", offload=True)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:5", "there is cuda:0, cuda:1"), ("tpu", "take auto, all, cpu"), ("cuda:x", "take")],
)
def test_a_device_that_is_not_there_is_said_so(device, message):
    with pytest.raises(RequestError, match=message):
        placement.place(meta("mistral-7b"), room(2), name="m", device=device)


def test_a_gpu_too_small_for_a_layer_holds_nothing():
    assert placement.gpus_needed(presets.PRESETS["llama-2-70b"], 1e9) is None


@pytest.mark.parametrize("stage", ["prepare", "generate"])
def test_a_call_beyond_the_memory_does_not_fit_and_the_next_one_runs(backend, monkeypatch, stage):
    """The machine's own refusal becomes a cell that does not fit, with the sizes; the model stays usable."""
    model = backend.load("tiny-llama")
    asked = Work(tokens_in=4, tokens_out=4, batch_size=2, kv_cache=True, seed=0)
    if stage == "prepare":
        huge = Work(tokens_in=4, tokens_out=4, batch_size=10**13, kv_cache=True, seed=0)
        with pytest.raises(DoesNotFitError, match=r"10000000000000 sequences.*KV cache.*smaller batch"):
            model.prepare(huge)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(model._network, "forward", lambda *_, **__: torch.empty(10**15))
            with pytest.raises(DoesNotFitError, match=r"weights 659 kB, KV cache 14\.3 kB") as caught:
                model.generate(model.prepare(asked))
        assert caught.value.needed_b == 164_672 * 4 + 2 * 7 * 2 * 2 * 64 * 4
    request = model.prepare(asked)
    assert model.verify(request, model.generate(request)) == 8


def test_another_error_of_torch_stays_what_it_is(backend, monkeypatch):
    """Only a lack of memory is a lack of memory."""
    model = backend.load("tiny-llama")

    def fail(*_, **__):
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    monkeypatch.setattr(model._network, "forward", fail)
    asked = Work(tokens_in=4, tokens_out=4, batch_size=2, kv_cache=True, seed=0)
    with pytest.raises(RuntimeError, match="must match"):
        model.generate(model.prepare(asked))
