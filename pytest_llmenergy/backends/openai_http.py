"""Any engine of this machine with the OpenAI HTTP API: vLLM, SGLang, TGI, llama.cpp, transformers serve.

The server schedules as it likes; a batch is so many requests at a time. It is asked for exact lengths in
whatever way it understands, and held to them by the usage it reports.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends import server_process
from pytest_llmenergy.backends.http_stream import TIMEOUT_S, Answer, Endpoint, StatusError
from pytest_llmenergy.backends.openai_prompts import Dialect, TokenIds, Words, negotiate
from pytest_llmenergy.errors import EngineError, RequestError, WrongWorkError
from pytest_llmenergy.records import ModelRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llmenergy.backends import Work

_SHOWN = 5


@dataclass(slots=True)
class Request:
    """What one call sends; every call sends other prompts."""

    work: Work
    bodies: list[dict[str, Any]]  # of the next call; empty once they were sent
    calls: int = 0


class OpenAIBackend:
    """A server that is running."""

    name = "openai"

    def __init__(self, base_url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._endpoint = Endpoint(base_url, api_key=os.environ.get("OPENAI_API_KEY"), timeout_s=timeout_s)

    def find(self, model: str) -> None:
        """Ask the server what it has.

        Raises:
            RequestError: it is on another machine, is not there, or does not have the model.
        """
        self._entry(model)

    def _entry(self, model: str) -> tuple[dict[str, Any], Mapping[str, str]]:
        if not server_process.is_local(self._endpoint.host):
            raise RequestError(
                f"{self._endpoint.host} is not this machine, and energy is metered here. "
                "Run pytest where the server runs."
            )
        try:
            return _entry(self._endpoint, model)
        except EngineError as error:
            raise RequestError(str(error)) from error

    def load(self, model: str) -> OpenAIModel:
        """Find a model the server has; nothing is loaded, and how to ask for exact lengths is found out.

        Raises:
            RequestError: the server is on another machine, is not there, or does not have the model.
        """
        endpoint = self._endpoint
        started_s = time.perf_counter()
        entry, headers = self._entry(model)
        try:
            vocabulary = (entry.get("meta") or {}).get("n_vocab")
            dialect, prompts = negotiate(endpoint, model, vocabulary)
        except EngineError as error:
            raise RequestError(str(error)) from error
        processes = server_process.processes_behind(endpoint.port)
        return OpenAIModel(
            endpoint,
            model,
            dialect=dialect,
            prompts=prompts,
            context=entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx"),
            pids=tuple(process.pid for process in processes),
            record=ModelRecord(
                model=model,
                backend=OpenAIBackend.name,
                load_s=time.perf_counter() - started_s,
                details={
                    "base_url": endpoint.url,
                    "server": headers.get("server") or headers.get("Server"),
                    "owned_by": entry.get("owned_by"),
                    "exact_lengths_by": dialect.value,
                    "processes": sorted({process.name() for process in processes}),
                },
            ),
        )


def _entry(endpoint: Endpoint, model: str) -> tuple[dict[str, Any], Mapping[str, str]]:
    """What the server says of a model, and the headers it says it with.

    A server need not list what it serves (transformers lists its cache, and fails without one), so no list
    is no refusal, and a local path need not be in it.
    """
    url = endpoint.url
    try:
        served, headers = endpoint.get("/models")
    except StatusError:
        return {}, {}
    entries = served.get("data") if isinstance(served, dict) else None
    if not isinstance(entries, list):
        raise EngineError(f"{url}/models lists no models: is it an OpenAI-compatible server?")
    names = [str(entry.get("id")) for entry in entries]
    if model not in names:
        if not names or Path(model).exists():
            return {}, headers
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise RequestError(
            f"the server at {url} has no model {model!r}; "
            f"it has {', '.join(names[:_SHOWN])}{more}. Name one of them with --models."
        )
    return dict(entries[names.index(model)]), headers


class OpenAIModel:
    """A model behind a server."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        dialect: Dialect,
        prompts: TokenIds | Words,
        context: int | None,
        pids: tuple[int, ...],
        record: ModelRecord,
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._dialect = dialect
        self._prompts = prompts
        self._context = context
        self.pids = pids
        self.record = record
        self._pool: ThreadPoolExecutor | None = None
        self._pool_size = 0

    @property
    def system(self) -> None:
        """The machine itself; the environment names it."""
        return

    @property
    def is_lost(self) -> bool:
        """Never: the server is not ours to start again."""
        return False

    @property
    def n_gpus(self) -> int | None:
        """How many GPUs the server's processes compute on; None where that cannot be seen."""
        gpus = server_process.gpus_of(set(self.pids))
        return None if gpus is None else len(gpus)

    def check(self, work: Work) -> None:
        """Refuse what the server cannot do.

        Raises:
            RequestError: no cache was asked of a server that always has one, or tokens beyond its context.
        """
        if not work.kv_cache and not self._dialect.can_do_without_cache:
            raise RequestError(
                f"the server at {self._endpoint.url} always keeps a KV cache. "
                "Measure it with --llm-energy-kv-cache."
            )
        tokens = work.tokens_in + work.tokens_out
        if self._context is not None and tokens > self._context:
            raise RequestError(
                f"{self._model} is served with room for {self._context} tokens, the cell needs {tokens}. "
                "Choose smaller token counts, or start the server with a longer context."
            )

    def prepare(self, work: Work) -> Request:
        """One request a sequence.

        Raises:
            RequestError: the server cannot be given so few tokens.
        """
        return Request(work, self._bodies(work, 0))

    def _bodies(self, work: Work, call: int) -> list[dict[str, Any]]:
        return [
            self._dialect.body(self._model, prompt, work.tokens_out, kv_cache=work.kv_cache)
            for prompt in self._prompts.make(work, call)
        ]

    def generate(self, request: Request, *, on_first_token: Callable[[], None] | None = None) -> list[Answer]:
        """Send all requests at once and read every answer to its end.

        `on_first_token` is called when every sequence has its first text; a server that queues
        may have decoded others by then.

        Raises:
            EngineError: a request failed.
        """
        work = request.work
        pool = self._workers(work.batch_size)
        latch = _Latch(work.batch_size)
        bodies = request.bodies or self._bodies(work, request.calls)
        request.bodies = []
        request.calls += 1
        futures = [pool.submit(self._endpoint.complete, body, latch.one_less) for body in bodies]
        try:
            if on_first_token is not None:
                for future in futures:
                    future.add_done_callback(latch.open_if_failed)
                latch.wait()
                on_first_token()
            wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in futures]
        except BaseException:
            self._endpoint.abort()
            wait(futures)
            raise

    def _workers(self, size: int) -> ThreadPoolExecutor:
        if self._pool is None or self._pool_size < size:
            self.close()
            self._pool = ThreadPoolExecutor(max_workers=size, thread_name_prefix="llmenergy-http")
            self._pool_size = size
        return self._pool

    def verify(self, request: Request, output: list[Answer]) -> int:
        """Count the tokens the server says it has read and made, and draw the next call's prompts.

        Raises:
            WrongWorkError: they are not what was asked for.
        """
        work = request.work
        for answer in output:
            if answer.completion_tokens is None:
                raise WrongWorkError(
                    f"{self._model}: the server reports no usage, so its work cannot be checked."
                )
            if (answer.prompt_tokens, answer.completion_tokens) != (work.tokens_in, work.tokens_out):
                raise WrongWorkError(
                    f"{self._model} was asked for {work.tokens_in} + {work.tokens_out} tokens, and the "
                    f"server reports {answer.prompt_tokens} + {answer.completion_tokens} "
                    f"(finish reason {answer.finish_reason!r}; asked by {self._dialect.value})."
                )
        if not request.bodies:  # outside the window, so that the next call only has to send them
            request.bodies = self._bodies(work, request.calls)
        return work.batch_size * work.tokens_out

    def timings(self, output: list[Answer]) -> dict[str, float]:
        """Mean over the sequences: `ttft_s`, and `tpot_s` where more than one token was made."""
        decoded = [(a, (a.completion_tokens or 1) - 1) for a in output]
        timings = {"ttft_s": sum(answer.ttft_s for answer in output) / len(output)}
        if all(steps > 0 for _, steps in decoded):
            timings["tpot_s"] = sum((a.runtime_s - a.ttft_s) / steps for a, steps in decoded) / len(output)
        return timings

    def account(self, work: Work, runtime_s: float) -> dict[str, Any]:
        """Nothing: the server does not tell the architecture it serves."""
        del work, runtime_s
        return {}

    def close(self) -> None:
        """Let the threads go; the server stays."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class _Latch:
    """Opens when it has been counted down, or when one of those who count has failed."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()
        self._opened = threading.Event()

    def one_less(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._opened.set()

    def open_if_failed(self, done: Future[Answer]) -> None:
        if done.exception() is not None:
            self._opened.set()

    def wait(self) -> None:
        self._opened.wait()
