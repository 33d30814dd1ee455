"""Random weights behave like trained ones, and are made without waste."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmenergy.backends import presets, weights
from pytest_llmenergy.errors import WrongWorkError

torch = pytest.importorskip("torch")

FAMILIES = ("tiny-llama", "tiny-mistral", "tiny-falcon", "tiny-mixtral")


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_are_normal_and_vectors_are_neutral(load, family):
    """N(0, 0.02) in every matrix, one in every norm, zero in every bias."""
    for name, parameter in load(family)._network.named_parameters():
        if parameter.ndim > 1:
            expected = weights.STANDARD_DEVIATION / math.sqrt(2 * parameter.numel())
            assert float(parameter.std()) == pytest.approx(0.02, abs=6 * expected), name
            assert float(parameter.mean()) == pytest.approx(0, abs=6 * 0.02 / math.sqrt(parameter.numel())), (
                name
            )
        else:
            assert bool((parameter == (0 if name.endswith("bias") else 1)).all()), name


def test_matrices_differ_from_each_other(load):
    """No block of normals is used twice."""
    matrices = [p for p in load("tiny-llama")._network.parameters() if p.ndim > 1]
    firsts = {tuple(matrix.flatten()[:4].tolist()) for matrix in matrices}
    assert len(firsts) == len(matrices)


def test_the_seed_alone_decides_the_weights(backend, monkeypatch):
    """The same seed gives the same weights on one thread and on eight; another seed gives others."""
    import pytest_llmenergy.backends.transformers as module

    def matrices(seed):
        opened = module.TransformersBackend(device="cpu", threads=1, seed=seed)
        return torch.cat([p.flatten() for p in opened.load("tiny-llama")._network.parameters()])

    one = matrices(1)
    monkeypatch.setattr(weights, "_cpus", lambda: 8)
    assert torch.equal(one, matrices(1))
    assert not torch.equal(one, matrices(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_frequencies_are_those_of_the_architecture(load, family):
    """A build on the meta device leaves the angles intact: theta^(-2i/d)."""
    network = load(family)._network
    inv_freq = dict(network.named_buffers())[
        "transformer.rotary_emb.inv_freq" if family == "tiny-falcon" else "model.rotary_emb.inv_freq"
    ]
    config = presets.PRESETS[family].config
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    theta = config["rope_parameters"]["rope_theta"]
    expected = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    assert inv_freq.tolist() == pytest.approx(expected, rel=1e-6)


def test_tied_weights_are_one_tensor(load):
    network = load("tiny-falcon")._network
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_finite_and_spread(load, family):
    """The probe at load is in the record; the activations have not collapsed."""
    assert 0.01 < load(family).record.details["logits_std"] < 10


def test_all_experts_are_routed_to_and_the_balance_is_in_the_record(load):
    """Every one of the eight experts gets tokens in every layer; no expert takes all."""
    balance = load("tiny-mixtral").record.details["expert_balance"]
    assert balance["used_min"] == balance["experts"] == 8
    assert balance["even_share"] == 1 / 8
    assert 1 / 8 <= balance["busiest_share"] < 0.3
    assert "expert_balance" not in load("tiny-llama").record.details


def test_experts_that_collapse_show_in_the_balance(backend):
    """A router that prefers two experts is seen: the negative control of the balance."""
    network = backend.load("tiny-mixtral")._network
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("mlp.gate.weight") or "router" in name:
                parameter.zero_()  # all logits equal: the same two win every time
    balance = weights.probe(network, seed=0)["expert_balance"]
    assert balance["used_min"] == 2
    assert balance["busiest_share"] == pytest.approx(0.5)


def test_logits_that_are_not_finite_are_an_error(backend):
    network = backend.load("tiny-llama")._network
    with torch.no_grad():
        network.lm_head.weight[3] = float("nan")
    with pytest.raises(WrongWorkError, match="not finite"):
        weights.probe(network, seed=0)


# In a process of its own: what others ran in this one before would stand in its memory.
_MATERIALISE = """
import re
from pathlib import Path

import numpy as np
import torch

from pytest_llmenergy.backends import weights


def resident_b(line):
    return int(re.search(line + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024


linear = {"bias": False, "device": "meta", "dtype": torch.bfloat16}
network = torch.nn.Sequential(*[torch.nn.Linear(8192, 4096, **linear) for _ in range(12)])
np.random.SFC64(0), torch.special.ndtri(torch.ones(8))  # what they load is no part of the weights
before_b = resident_b("VmRSS")
weights.materialise(network, seed=0, device_of=lambda _: torch.device("cpu"))
weights_b = sum(parameter.nbytes for parameter in network.parameters())
print(weights_b, (resident_b("VmHWM") - before_b) / weights_b)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak memory counter")
def test_the_peak_memory_is_the_weights():
    """A model of 800 MB in bf16 is materialised within 1.1 times its weights."""
    done = subprocess.run([sys.executable, "-c", _MATERIALISE], capture_output=True, text=True, check=True)
    weights_b, peak = map(float, done.stdout.split())
    assert weights_b > 800e6
    assert 0.9 < peak < 1.1
