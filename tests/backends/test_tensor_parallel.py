"""A model whose matrices are shared between processes does the same work as one that is whole."""

import os

import pytest

from pytest_llmenergy.backends import Work, open_backend
from pytest_llmenergy.errors import EngineError, RequestError

torch = pytest.importorskip("torch")


def work(tokens_in=6, tokens_out=5, batch_size=3, *, kv_cache=True):
    return Work(tokens_in=tokens_in, tokens_out=tokens_out, batch_size=batch_size, kv_cache=kv_cache, seed=0)


def shared(n_ranks):
    return open_backend(device="cpu", threads=1, n_ranks=n_ranks)


@pytest.mark.slow
def test_two_processes_do_what_one_does(load):
    """The same tokens, cache on and off; the record says how it is shared; a lost process is an error."""
    model = shared(2).load("tiny-llama")
    whole = load("tiny-llama")
    try:
        for kv_cache in (True, False):
            request = model.prepare(work(kv_cache=kv_cache))
            output = model.generate(request)
            assert model.verify(request, output) == 15
            assert torch.equal(output, whole.generate(whole.prepare(work(kv_cache=kv_cache))))
        assert model.record.parameters == whole.record.parameters
        assert model.record.details["placement"] == "tensor parallel"
        assert model.record.details["tensor_parallel"] == 2
        assert model.account(work(), 1.0) == whole.account(work(), 1.0)
        (process,) = model._ranks._processes
        process.kill()
        process.wait()
        assert not model.is_lost
        with pytest.raises(EngineError, match="rank 1 of the tensor-parallel model has ended"):
            model.generate(model.prepare(work()))
        assert model.is_lost
    finally:
        model.close()
    assert process.poll() is not None
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "raise ImportError('libfast.so is of another machine')",
            "ImportError: libfast.so is of another machine",
        ),
        ("import os; os.kill(os.getpid(), 9)", r"killed by signal 9 \(Killed\)"),
    ],
    ids=["an error", "a signal"],
)
def test_a_rank_that_ends_while_loading_is_not_waited_for(tmp_path, monkeypatch, fault, words):
    """What it said last is the message, at once: torch would wait two hours for it."""
    (tmp_path / "transformers.py").write_text(fault)  # in the other process alone: here it is imported
    shared(1).load("tiny-llama").close()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EngineError, match=f"rank 1 of the tensor-parallel model has ended: {words}"):
        shared(2).load("tiny-llama")
    assert "WORLD_SIZE" not in os.environ
    assert not torch.distributed.is_initialized()


def test_an_architecture_without_a_plan_is_refused():
    with pytest.raises(RequestError, match="no tensor-parallel plan for 'falcon'"):
        shared(2).load("tiny-falcon")


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(RequestError, match="num_attention_heads is 4, which 3 processes"):
        shared(3).load("tiny-llama")
