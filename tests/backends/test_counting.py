"""What a call needs, counted against what torch counts while it runs."""

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy.backends import Work, counting
from pytest_llmenergy.errors import WrongWorkError

torch = pytest.importorskip("torch")


def work(tokens_in, tokens_out, batch_size=2, *, kv_cache):
    return Work(tokens_in=tokens_in, tokens_out=tokens_out, batch_size=batch_size, kv_cache=kv_cache, seed=0)


def counted_by_torch(model, asked):
    """FLOPs of every product torch ran."""
    from torch.utils.flop_counter import FlopCounterMode

    request = model.prepare(asked)
    with FlopCounterMode(display=False) as counter:
        model.generate(request)
    return counter.get_total_flops()


@pytest.mark.parametrize("kv_cache", [False, True], ids=["no-kv", "kv"])
@pytest.mark.parametrize("family", ["tiny-llama", "tiny-mistral", "tiny-falcon", "tiny-mixtral"])
def test_products_are_counted_as_torch_counts_them(backend, family, kv_cache):
    """To the unit, with the plain kernels that torch can look into; they attend to masked pairs too."""
    model = backend.load(family)
    model._network.set_attn_implementation("eager")
    if family == "tiny-mixtral":
        model._network.set_experts_implementation("eager")
    asked = work(9, 5, batch_size=3, kv_cache=kv_cache)
    shape = counting.shape_of(model._network)
    contexts = [asked.tokens_in + step for step in range(asked.tokens_out)]
    squares = [n * (1 if kv_cache and step else n) for step, n in enumerate(contexts)]
    masked_too = 4 * shape.attention_dims * sum(shape.windows.values()) * sum(squares) * asked.batch_size
    without_attention = counting.needed(dataclasses.replace(shape, attention_dims=0), asked)
    assert counted_by_torch(model, asked) == without_attention.flops + masked_too


@given(st.integers(1, 40), st.integers(1, 40), st.none() | st.integers(1, 50))
def test_attended_pairs_are_those_of_a_causal_window(context, passed, window):
    """Each of the last positions attends to itself and to those before it that the window reaches."""
    passed = min(passed, context)
    brute = sum(
        1
        for query in range(context - passed, context)
        for key in range(query + 1)
        if window is None or query - key < window
    )
    assert counting._pairs(context, passed, window) == brute


def test_bytes_are_weights_once_a_step_and_the_cache_of_each_sequence():
    """Two steps: the weights twice whatever the batch; keys and values written once, and read later."""
    shape = counting.Shape(
        linear_parameters=1000,
        head_parameters=100,
        attention_dims=8,
        windows={None: 2},
        kv_elements_per_token_and_layer=16,
        bytes_per_weight=2.0,
        bytes_per_kv_element=2.0,
    )
    without = counting.needed(shape, work(10, 2, batch_size=4, kv_cache=False))
    assert without.bytes == 2 * 2 * 1100
    cached = counting.needed(shape, work(10, 2, batch_size=4, kv_cache=True))
    assert cached.bytes == without.bytes + 4 * (2 * 16 * 2) * (10 + 10 + 1)


def test_a_mixture_reads_the_experts_its_tokens_touch():
    """One token touches its own experts; many touch all."""
    shape = counting.Shape(
        linear_parameters=0,
        expert_parameters=800,
        n_experts=8,
        experts_per_token=2,
        head_parameters=0,
        attention_dims=0,
        windows={},
        kv_elements_per_token_and_layer=0,
        bytes_per_weight=1.0,
        bytes_per_kv_element=1.0,
    )
    assert counting.needed(shape, work(1, 1, batch_size=1, kv_cache=True)).bytes == pytest.approx(200)
    assert counting.needed(shape, work(500, 1, batch_size=1, kv_cache=True)).bytes == pytest.approx(800)


def test_a_call_faster_than_the_device_is_an_error():
    """At the peak a call passes, with an MFU of one; beyond it, it did not do the work."""
    what = counting.Needed(flops=312e12, bytes=1.0)
    assert counting.account(what, 1.0, peak=312e12)["mfu"] == pytest.approx(1.0)
    assert counting.account(what, 4.0, peak=312e12)["mfu"] == pytest.approx(0.25)
    with pytest.raises(WrongWorkError, match=r"peak is 3\.12e\+14"):
        counting.account(what, 0.9, peak=312e12)


def test_an_unknown_device_has_no_utilisation():
    """Unknown is None: no peak is made up, and no call is refused."""
    assert counting.account(counting.Needed(flops=1e30, bytes=1.0), 1e-9, peak=None)["mfu"] is None
    assert counting.peak_flops_per_s("Imagination PowerVR", "bfloat16") is None


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("NVIDIA H100 PCIe", "float16", 756e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA A100-SXM4-40GB", "float64", None),
    ],
)
def test_peaks_are_the_makers_dense_figures(name, dtype, peak):
    assert counting.peak_flops_per_s(name, dtype) == peak


def test_the_peak_of_a_model_is_that_of_all_its_devices(backend, monkeypatch):
    """Two GPUs have twice the peak, as have two processes; one that is not known leaves the sum unknown."""
    model = backend.load("tiny-llama")
    names = ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"]
    parts = [SimpleNamespace(device=torch.device("cuda", index)) for index in (0, 0, 1)]
    network = SimpleNamespace(dtype=torch.bfloat16, parameters=lambda: iter(parts))
    monkeypatch.setattr(model, "_network", network)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    asked = work(9, 5, kv_cache=True)
    assert model.account(asked, 1.0)["peak_flops_per_s"] == 624e12
    assert model.n_gpus == 2
    monkeypatch.setattr(model, "n_ranks", 2)
    assert model.account(asked, 1.0)["peak_flops_per_s"] == 1248e12
    assert model.n_gpus == 4
    with pytest.raises(WrongWorkError, match="did not do the work"):
        model.account(asked, 1e-12)
    names[1] = "a GPU of next year"
    assert model.account(asked, 1e-12)["peak_flops_per_s"] is None


def test_the_papers_batch_could_not_have_been_32():
    """Its longest Llama-2-7B call, 9 in and 2048 out in 203 s on an A100, is possible at batch 1 alone."""
    shape = counting.Shape(
        linear_parameters=6_738_415_616 - 2 * 4096 * 32000,
        head_parameters=4096 * 32000,
        attention_dims=4096,
        windows={None: 32},
        kv_elements_per_token_and_layer=2 * 4096,
        bytes_per_weight=2.0,
        bytes_per_kv_element=2.0,
    )
    one = counting.needed(shape, work(9, 2048, batch_size=1, kv_cache=False))
    assert counting.account(one, 203.0, peak=312e12)["flops_per_s"] == pytest.approx(140e12, rel=0.05)
    many = counting.needed(shape, work(9, 2048, batch_size=32, kv_cache=False))
    with pytest.raises(WrongWorkError):
        counting.account(many, 203.0, peak=312e12)
