"""What goes into a call: exactly the tokens of a cell, random ones or the user's own prompts, cut."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_llmenergy.backends.problems import problems_named
from pytest_llmenergy.errors import DocumentError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from pytest_llmenergy.backends import Work
    from pytest_llmenergy.backends.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomTokens:
    """Random tokens of a vocabulary."""

    vocabulary: int
    description = "random tokens"

    def make(self, work: Work) -> torch.Tensor:
        """Seeded token ids, [batch_size, tokens_in], other ones in each sequence."""
        import torch

        generator = torch.Generator().manual_seed(work.seed)
        input_ids = torch.randint(self.vocabulary, (work.batch_size, work.tokens_in), generator=generator)
        # First tokens are drawn without replacement: no two sequences of a batch are equal, however short.
        first = torch.randperm(self.vocabulary, generator=generator)
        input_ids[:, 0] = first.repeat(-(-work.batch_size // self.vocabulary))[: work.batch_size]
        return input_ids


class UserPrompts:
    """Texts of the user, tokenised once."""

    def __init__(self, texts: Sequence[str], source: Source) -> None:
        self._texts = texts
        self._source = source
        self.description = f"the user's {len(texts)}"

    @cached_property
    def _tokenised(self) -> list[list[int]]:
        tokenizer = tokenizer_of(self._source)
        return [tokenizer(text)["input_ids"] for text in self._texts]

    def make(self, work: Work) -> torch.Tensor:
        """Token ids of texts that are long enough, [batch_size, tokens_in].

        Raises:
            RequestError: none is, or the model has no tokenizer.
        """
        import torch

        return torch.tensor(cut(self._tokenised, work.tokens_in, work.batch_size, work.seed))


def tokenizer_of(source: Source) -> Any:
    """The tokenizer that came with a model.

    Raises:
        RequestError: none did.
    """
    from transformers import AutoTokenizer

    if source.directory is None:
        raise no_tokenizer(source.name)
    with problems_named(source.name):
        return AutoTokenizer.from_pretrained(
            source.directory, gguf_file=source.gguf_file, local_files_only=True
        )


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
