"""Engines behind an HTTP API do exactly what they are asked, or are found out."""

import socket
import threading
import time

import pytest

from pytest_llmenergy.backends import Work, open_backend
from pytest_llmenergy.errors import EngineError, RequestError, WrongWorkError
from tests.doubles.openai_server import serving


def work(tokens_in=9, tokens_out=5, batch_size=4, *, kv_cache=True, seed=0):
    return Work(
        tokens_in=tokens_in, tokens_out=tokens_out, batch_size=batch_size, kv_cache=kv_cache, seed=seed
    )


def load(url):
    return open_backend("openai", base_url=url).load("served")


def measured(behaviour):
    """The requests since the last look."""
    requests = list(behaviour.requests)
    behaviour.requests.clear()
    return requests


def test_a_batch_is_so_many_requests_at_a_time():
    """Four sequences are four requests at once, each of exactly the tokens asked for."""
    with serving() as (url, behaviour):
        model = load(url)
        measured(behaviour)
        behaviour.most_at_once = 0
        behaviour.together = threading.Barrier(4)
        request = model.prepare(work())
        assert measured(behaviour) == []
        assert model.verify(request, model.generate(request)) == 20
        sent = measured(behaviour)
        assert behaviour.most_at_once == 4
        assert [len(body["prompt"]) for body in sent] == [9] * 4
        assert all(body["max_tokens"] == body["min_tokens"] == 5 and body["ignore_eos"] for body in sent)
        assert all(body["cache_prompt"] is False for body in sent)  # llama.cpp's: no prefix is skipped
        model.close()


def test_prompts_differ_in_each_sequence_and_each_call():
    """A server that keeps prefixes finds none of them again; the same seed draws the same prompts."""
    with serving() as (url, behaviour):
        model = load(url)
        drawn = []
        for _ in range(2):
            request = model.prepare(work())
            measured(behaviour)
            outputs = [model.generate(request), model.generate(request)]  # back to back in one window
            for output in outputs:
                model.verify(request, output)
            drawn.append(sorted(tuple(body["prompt"]) for body in measured(behaviour)))
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) == 8
        assert max(max(prompt) for prompt in drawn[0]) < behaviour.vocabulary


@pytest.mark.parametrize(
    ("server", "way"),
    [
        ({}, "token ids, ignore_eos, min_tokens"),
        ({"token_ids": False}, "text, ignore_eos, min_tokens"),
        ({"token_ids": False, "unknown_fields": False}, "text, generation_config"),
        ({"token_ids": False, "forced_length": False}, "text, max_tokens alone"),
    ],
)
def test_each_kind_of_server_is_asked_in_the_way_it_understands(server, way):
    """Token ids where it takes them, else text; exact lengths by what it knows; the record says how."""
    with serving(**server) as (url, _):
        model = load(url)
        assert model.record.details["exact_lengths_by"] == way
        tokens_out = 3 if "alone" in way else 5
        request = model.prepare(work(tokens_out=tokens_out))
        assert model.verify(request, model.generate(request)) == 4 * tokens_out


@pytest.mark.parametrize("tokens_in", [3, 8, 64, 129])
def test_text_is_made_to_the_token(tokens_in):
    """Without the server's tokenizer, a prompt of words still has exactly the tokens asked for."""
    with serving(token_ids=False, tokens_before=2) as (url, _):
        model = load(url)
        request = model.prepare(work(tokens_in))
        assert model.verify(request, model.generate(request)) == 20


def test_fewer_tokens_than_the_server_adds_are_refused():
    with (
        serving(token_ids=False, tokens_before=6) as (url, _),
        pytest.raises(RequestError, match="6 tokens of its"),
    ):
        load(url).prepare(work(6))


def test_the_first_text_is_timed_and_marked():
    """Time to first token and per token come from the stream; the mark comes when all have begun."""
    with serving() as (url, behaviour):
        model = load(url)
        behaviour.together, behaviour.go_on = threading.Barrier(4), threading.Event()
        behaviour.last_s, behaviour.first_s, behaviour.token_s = 0.2, 0.2, 0.05
        behaviour.begun = 0
        request = model.prepare(work())
        marks = []

        def mark():
            marks.append(behaviour.begun)
            behaviour.go_on.set()

        started_s = time.perf_counter()
        timings = model.timings(model.generate(request, on_first_token=mark))
        runtime_s = time.perf_counter() - started_s
        assert marks == [4]
        # One of the four began 0.2 s later; for all, four tokens with a pause after each followed that.
        decode_s = 4 * timings["tpot_s"]
        assert timings["ttft_s"] >= 0.25
        assert decode_s >= 0.2
        assert 0.6 <= timings["ttft_s"] + decode_s <= runtime_s


def test_tokens_that_are_no_text_still_end_the_prefill():
    """A stream without any text does not keep the mark waiting for ever."""
    with serving() as (url, behaviour):
        model = load(url)
        behaviour.text = ""
        marks = []
        model.generate(model.prepare(work()), on_first_token=lambda: marks.append(True))
        assert marks == [True]


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "with a mark"])
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("500", r"answered 500: out of cheese"),
        ("cut", r"ended the stream before the completion was finished"),
        ("error", r"broke off with an error: the engine died"),
    ],
)
def test_a_failing_server_is_one_clear_error(failure, message, marked):
    """The third request of a batch fails: the call ends at once, says why, and the next call works."""
    with serving() as (url, behaviour):
        model = load(url)
        behaviour.fail, behaviour.fail_from = failure, 2
        mark = {"on_first_token": lambda: None} if marked else {}
        with pytest.raises(EngineError, match=message):
            model.generate(model.prepare(work()), **mark)
        behaviour.fail = None
        request = model.prepare(work())
        assert model.verify(request, model.generate(request)) == 20


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("short", r"9 \+ 5 tokens, and the server reports 9 \+ 4"),
        ("prompt", r"9 \+ 5 tokens, and the server reports 10 \+ 5"),
        ("no usage", "reports no usage"),
    ],
)
def test_a_wrong_count_is_wrong_work(failure, message):
    with serving() as (url, behaviour):
        model = load(url)
        behaviour.fail = failure
        request = model.prepare(work())
        with pytest.raises(WrongWorkError, match=message):
            model.verify(request, model.generate(request))


def test_a_server_that_says_nothing_is_given_up():
    from pytest_llmenergy.backends.openai_http import OpenAIBackend

    with serving() as (url, behaviour):
        model = OpenAIBackend(url).load("served")
        model._endpoint._timeout_s = 0.2  # only now: to load may take longer
        behaviour.fail = "hang"
        with pytest.raises(EngineError, match=r"sent nothing for 0\.2 s"):
            model.generate(model.prepare(work(batch_size=1)))


def test_a_refused_connection_says_what_to_look_at():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RequestError, match=r"cannot be reached .*Is the server running"):
            load(url)


def test_a_model_the_server_does_not_have_names_those_it_has():
    with serving() as (url, _), pytest.raises(RequestError, match=r"no model 'other'; it has served"):
        open_backend("openai", base_url=url).load("other")


def test_a_server_that_fails_every_time_is_refused_at_load():
    with serving(fail="500") as (url, _), pytest.raises(RequestError, match="completes nothing"):
        load(url)


def test_no_cache_is_refused_where_the_server_always_has_one():
    """The paper's mode cannot be had from an engine that keeps its cache; one that can is asked to."""
    with serving() as (url, _), pytest.raises(RequestError, match="always keeps a KV cache"):
        load(url).check(work(kv_cache=False))
    with serving(token_ids=False, unknown_fields=False) as (url, behaviour):
        model = load(url)
        assert model.check(work(kv_cache=False)) is None
        measured(behaviour)
        model.generate(model.prepare(work(kv_cache=False)))
        assert all('"use_cache": false' in body["generation_config"] for body in measured(behaviour))


def test_a_cell_beyond_the_servers_context_is_refused():
    with serving(max_model_len=16) as (url, _):
        model = load(url)
        assert model.check(work(8, 8)) is None
        with pytest.raises(RequestError, match="room for 16 tokens, the cell needs 17"):
            model.check(work(9, 8))


def test_a_server_elsewhere_is_refused():
    """Energy is metered on this machine, so the server has to run on it."""
    with pytest.raises(RequestError, match="not this machine"):
        load("http://203.0.113.7:8000/v1")


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://", "http://127.0.0.1:port"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(RequestError, match="no address of a server"):
        open_backend("openai", base_url=address)


def test_the_processes_behind_the_port_are_found():
    """The process that listens is known, so that its energy can be told from others'."""
    import os

    with serving() as (url, _):
        assert os.getpid() in load(url).pids
