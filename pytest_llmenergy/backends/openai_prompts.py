"""How to ask a server for exact lengths, and prompts of exactly so many tokens without its tokenizer."""

from __future__ import annotations

import enum
import json
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.errors import EngineError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmenergy.backends import Work
    from pytest_llmenergy.backends.http_stream import Endpoint

# Words of four letters: to most tokenizers one token each with the space before them, to a byte-level five.
_WORDS = tuple(
    "able back call dark each face game hand idea join kind land main name open park rain same talk "  # noqa: SIM905 - it reads better
    "unit wait year zone area body city door even fact gold half iron jump keep line mind next over "
    "page race side time used view word".split()
)
_FILLER = "."
_PROBE_OUT = 4


class Dialect(enum.StrEnum):
    """How a server is asked for exactly so many tokens, the surest way first."""

    TOKEN_IDS = "token ids, ignore_eos, min_tokens"  # noqa: S105 - no password; vLLM, SGLang, llama.cpp
    TEXT = "text, ignore_eos, min_tokens"  # servers that take no token ids
    GENERATION_CONFIG = "text, generation_config"  # transformers serve
    MAX_TOKENS = "text, max_tokens alone"  # anything else: an early end is seen, not prevented

    @property
    def can_do_without_cache(self) -> bool:
        """Whether the KV cache can be switched off."""
        return self is Dialect.GENERATION_CONFIG

    def body(
        self, model: str, prompt: str | list[int], tokens_out: int, *, kv_cache: bool = True
    ) -> dict[str, Any]:
        """The request."""
        body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": tokens_out}
        if self is Dialect.GENERATION_CONFIG:
            exact = {
                "max_new_tokens": tokens_out,
                "min_new_tokens": tokens_out,
                "do_sample": False,
                "use_cache": kv_cache,
            }
            return body | {"generation_config": json.dumps(exact)}
        body |= {"temperature": 0.0, "stream_options": {"include_usage": True}}
        if self is not Dialect.MAX_TOKENS:
            # cache_prompt is llama.cpp's: a prefix it has seen must not be skipped.
            body |= {"ignore_eos": True, "min_tokens": tokens_out, "cache_prompt": False}
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Random token ids."""

    vocabulary: int  # ids below it are known to the server

    def make(self, work: Work, call: int) -> list[str] | list[list[int]]:
        """One prompt a sequence, other ones in every call, so that no cache of prefixes can skip the work."""
        draw = random.Random(f"{work.seed}/{call}")  # noqa: S311 - prompts, not secrets
        return [
            [draw.randrange(self.vocabulary) for _ in range(work.tokens_in)] for _ in range(work.batch_size)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Random words whose cost in tokens the server has told."""

    words: tuple[str, ...]
    tokens_per_word: int
    tokens_before: int  # that the server adds of its own

    def make(self, work: Work, call: int) -> list[str] | list[list[int]]:
        """One prompt a sequence, other ones in every call.

        Raises:
            RequestError: so few tokens cannot be had.
        """
        room = work.tokens_in - self.tokens_before
        if room < 1:
            raise RequestError(
                f"the server puts {self.tokens_before} tokens of its own before a prompt; "
                f"ask for more than {work.tokens_in} tokens in."
            )
        n_words, rest = divmod(room, self.tokens_per_word)
        draw = random.Random(f"{work.seed}/{call}")  # noqa: S311 - prompts, not secrets
        return [
            _FILLER * rest + "".join(f" {word}" for word in draw.choices(self.words, k=n_words))
            for _ in range(work.batch_size)
        ]


def negotiate(endpoint: Endpoint, model: str, vocabulary: int | None) -> tuple[Dialect, TokenIds | Words]:
    """Find out by small requests how this server is asked for exact lengths.

    Args:
        endpoint: the server.
        model: a model it serves.
        vocabulary: the size of its vocabulary, where it has told.

    Raises:
        EngineError: it completes nothing, however it is asked.
    """
    refusals = []
    for dialect in Dialect:
        try:
            if dialect is Dialect.TOKEN_IDS:
                answer = endpoint.complete(dialect.body(model, list(range(5, 13)), _PROBE_OUT))
                if answer.prompt_tokens == 8 and answer.completion_tokens == _PROBE_OUT:  # noqa: PLR2004 - range(5, 13)
                    return dialect, TokenIds(vocabulary=vocabulary or _vocabulary(endpoint, model))
            else:
                answer = endpoint.complete(dialect.body(model, _WORDS[0], _PROBE_OUT))
                if answer.completion_tokens == _PROBE_OUT or dialect is Dialect.MAX_TOKENS:
                    return dialect, _words(partial(_count, endpoint, dialect, model))
            refusals.append(f"{dialect.value}: {answer.prompt_tokens} in, {answer.completion_tokens} out")
        except EngineError as error:
            refusals.append(f"{dialect.value}: {error}")
    raise EngineError(f"{endpoint.url} completes nothing with exact lengths. Tried: " + "; ".join(refusals))


def _vocabulary(endpoint: Endpoint, model: str) -> int:
    """The largest power of two whose last id the server takes: surely inside its vocabulary."""
    for bits in range(17, 7, -1):
        body = Dialect.TOKEN_IDS.body(model, [5, (1 << bits) - 1], 1)
        try:
            endpoint.complete(body)
        except EngineError:
            continue
        return 1 << bits
    return 128


def _count(endpoint: Endpoint, dialect: Dialect, model: str, text: str) -> int:
    tokens = endpoint.complete(dialect.body(model, text, 1)).prompt_tokens
    if tokens is None:
        raise EngineError(f"{endpoint.url} reports no usage, so nothing it does can be checked.")
    return tokens


def _words(count: Callable[[str], int]) -> Words:
    """Learn what words cost from the server's own counts."""
    one, two = count(f" {_WORDS[0]}"), count(f" {_WORDS[0]}" * 2)
    per_word, before = two - one, 2 * one - two
    if per_word < 1:
        raise EngineError(
            f"the server counts {one} tokens in one word and {two} in two; it cannot be relied on."
        )
    words = _WORDS
    if count("".join(f" {word}" for word in words)) != before + per_word * len(words):
        words = tuple(word for word in words if count(f" {word}") == before + per_word)
    return Words(words=words, tokens_per_word=per_word, tokens_before=before)
