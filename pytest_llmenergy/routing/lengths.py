"""Output lengths that nobody knows yet: expected costs under a distribution of tokens_out given tokens_in.

An expectation keeps the problem a transportation problem: a class is then one prompt length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.routing.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_llmenergy.routing.hosts import Host

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_LEAST_QUERIES = 200  # a bin of prompt lengths has at least so many queries to learn from


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLengths:
    """How long answers were, by bins of prompt length."""

    first_tokens_in: Ints  # (B,): the shortest prompt of each bin
    outs: tuple[Ints, ...]  # a bin: the answers' lengths
    chances: tuple[Floats, ...]  # a bin: how often each, adding up to 1

    def given(self, tokens_in: int) -> tuple[Ints, Floats]:
        """The lengths a prompt's answer may have, and their probabilities."""
        b = max(0, int(np.searchsorted(self.first_tokens_in, tokens_in, "right")) - 1)
        return self.outs[b], self.chances[b]


def learn_lengths(history: Workload, *, least_queries: int = _LEAST_QUERIES) -> OutputLengths:
    """The empirical distribution of tokens_out, in bins of tokens_in that have enough queries."""
    starts = np.flatnonzero(np.diff(history.tokens_in, prepend=-1))
    upto = np.cumsum(history.counts)
    edges = [0]
    for start in starts[1:]:
        before = upto[edges[-1] - 1] if edges[-1] else 0
        if upto[start - 1] - before >= least_queries and upto[-1] - upto[start - 1] >= least_queries:
            edges.append(int(start))
    ends = [*edges[1:], len(history.counts)]
    outs, chances = [], []
    for start, end in zip(edges, ends, strict=True):
        lengths, where = np.unique(history.tokens_out[start:end], return_inverse=True)
        counts = np.bincount(where, history.counts[start:end])
        outs.append(lengths)
        chances.append(counts / counts.sum())
    return OutputLengths(
        first_tokens_in=history.tokens_in[edges], outs=tuple(outs), chances=tuple(chances)
    )


def blind(workload: Workload) -> Workload:
    """The same queries with tokens_out not looked at: a class a prompt length; tokens_out is 0."""
    tokens_in, where = np.unique(workload.tokens_in, return_inverse=True)
    counts = np.bincount(where, workload.counts).astype(np.int64)
    return Workload(tokens_in=tokens_in, tokens_out=np.zeros_like(tokens_in), counts=counts)


def expected(host: Host, tokens_in: Ints, lengths: OutputLengths) -> tuple[Floats, Floats | None, Floats]:
    """Expected energy in J, machine time in s and tokens_out of one query of each prompt length."""
    energy_j, runtime_s, tokens_out = [], [], []
    for prompt in tokens_in:
        outs, chances = lengths.given(int(prompt))
        prompts = np.full(len(outs), prompt)
        energy_j.append(np.maximum(host.energy_of(prompts, outs), 0) @ chances)
        tokens_out.append(outs @ chances)
        runtime = host.runtime_of(prompts, outs)
        if runtime is not None:
            runtime_s.append(np.maximum(runtime, 0) @ chances)
    return np.array(energy_j), np.array(runtime_s) if runtime_s else None, np.array(tokens_out)
