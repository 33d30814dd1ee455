"""Completions streamed over HTTP, read with little work of our own, since it is metered with the server's."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_llmenergy.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# A chunk that has more than text: why it ended, what it counted, or what went wrong.
_TELLS = re.compile(rb'"finish_reason":\s*"|"usage":\s*\{|"error"\s*:')
TIMEOUT_S = 600.0  # without a byte: a prompt of a slow model may take minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished completion, with the counts the server reported; None where it reported none."""

    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    ttft_s: float  # from sending the request to the first text
    runtime_s: float


class Endpoint:
    """One server."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """Take an address such as `http://127.0.0.1:8000/v1`.

        Raises:
            RequestError: it is no http address.
        """
        url = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        try:
            port = url.port
        except ValueError:
            port = None
        if url.scheme not in ("http", "https") or not url.hostname or (port is None and ":" in url.netloc):
            raise RequestError(
                f"{base_url!r} is no address of a server. Give one like http://127.0.0.1:8000/v1."
            )
        self.host = url.hostname
        self.port = port or (443 if url.scheme == "https" else 80)
        self._secure = url.scheme == "https"
        self._path = url.path.rstrip("/") or "/v1"
        self.url = f"{url.scheme}://{self.host}:{self.port}{self._path}"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def get(self, path: str) -> tuple[Any, Mapping[str, str]]:
        """A JSON document, and the response's headers.

        Raises:
            EngineError: the server cannot be reached, or answers with an error.
        """
        with self._response("GET", path, None) as response:
            text = response.read()
            return _decoded(text, f"{self.url}{path}"), dict(response.getheaders())

    def complete(self, body: dict[str, Any], on_first: Callable[[], None] | None = None) -> Answer:
        """Stream one completion to its end; `on_first` is called at its first text.

        Raises:
            EngineError: the server cannot be reached, answers with an error, or ends the stream too early.
        """
        started_s = time.perf_counter()
        first_s: float | None = None
        usage: dict[str, Any] | None = None
        finish_reason: str | None = None
        with self._response("POST", "/completions", body | {"stream": True}) as response:
            for line in response:
                if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
                    continue
                # Between the first text and the end, a chunk says nothing we need.
                if first_s is not None and not _TELLS.search(line):
                    continue
                chunk = _decoded(line[len(b"data:") :], self.url)
                if "error" in chunk:
                    raise EngineError(f"{self.url} broke off with an error: {_message_of(chunk)}")
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices") or ():
                    finish_reason = choice.get("finish_reason") or finish_reason
                    if first_s is None and choice.get("text"):
                        first_s = time.perf_counter()
                        if on_first is not None:
                            on_first()
        ended_s = time.perf_counter()
        if first_s is None and on_first is not None:
            on_first()  # tokens that are no text, a lone byte of a character say
        if finish_reason is None:
            raise EngineError(
                f"{self.url} ended the stream before the completion was finished. Look into the server's log."
            )
        return Answer(
            prompt_tokens=None if usage is None else usage.get("prompt_tokens"),
            completion_tokens=None if usage is None else usage.get("completion_tokens"),
            finish_reason=finish_reason,
            ttft_s=(ended_s if first_s is None else first_s) - started_s,
            runtime_s=ended_s - started_s,
        )

    def abort(self) -> None:
        """Cut every connection that is open, so that nobody waits for an answer no one wants."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(2)

    @contextlib.contextmanager
    def _response(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self._timeout_s)
        with self._lock:
            self._open.add(connection)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, content, self._headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                message = _message_of(response.read().decode(errors="replace"))
                raise StatusError(f"{self.url}{path} answered {response.status}: {message}", response.status)
            yield response
        except TimeoutError as error:
            raise EngineError(f"{self.url} sent nothing for {self._timeout_s:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(
                f"{self.url} cannot be reached or broke off ({error or type(error).__name__}). "
                "Is the server running, and is the address right?"
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


class StatusError(EngineError):
    """The server answered with an error; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


def _decoded(text: bytes, url: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(f"{url} sent what is no JSON: {text[:80]!r}") from error


def _message_of(answer: Any) -> str:
    """The sentence inside an error, in whichever form the server wraps it."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError:
            return answer.strip()[:300] or "nothing"
    while isinstance(answer, dict):
        answer = next((answer[key] for key in ("error", "message", "detail") if key in answer), str(answer))
    return str(answer)[:300]
