"""The user's own prompts, cut to exactly the tokens of a cell."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pytest_llmenergy.errors import DocumentError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines are left out.

    Raises:
        DocumentError: it cannot be read, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DocumentError(path, "is no UTF-8 text.", "Write one prompt a line.") from error
    prompts = tuple(line for line in lines if line.strip())
    if not prompts:
        raise DocumentError(path, "holds no prompt.", "Write one prompt a line.")
    return prompts


def no_tokenizer(model: str) -> RequestError:
    """The refusal of text for a model that came without a tokenizer."""
    return RequestError(
        f"{model} has random weights and no tokenizer, so it takes no text: leave --llm-energy-prompts out, "
        "or name a trained model."
    )


def cut(tokenised: Sequence[Sequence[int]], tokens_in: int, batch_size: int, seed: int) -> list[list[int]]:
    """The first `tokens_in` tokens of `batch_size` prompts that have as many, in seeded order.

    A prompt is used again only when all have been.

    Raises:
        RequestError: no prompt is long enough.
    """
    long_enough = [list(tokens[:tokens_in]) for tokens in tokenised if len(tokens) >= tokens_in]
    if not long_enough:
        longest = max(map(len, tokenised))
        raise RequestError(
            f"no prompt has {tokens_in} tokens; the longest has {longest}. "
            "Give longer prompts or fewer tokens in."
        )
    order = list(range(len(long_enough)))
    random.Random(seed).shuffle(order)  # noqa: S311 - prompts, not secrets
    return [long_enough[order[index % len(order)]] for index in range(batch_size)]
