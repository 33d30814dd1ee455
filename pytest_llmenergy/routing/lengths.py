"""Output lengths that nobody knows yet: expected costs under a distribution of tokens_out given tokens_in.

An expectation keeps the problem a transportation problem: a class is then one prompt length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.routing.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.hosts import Host
    from pytest_llmenergy.routing.workload import Workload

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
    return OutputLengths(first_tokens_in=history.tokens_in[edges], outs=tuple(outs), chances=tuple(chances))


def blind_problem(
    hosts: Sequence[Host], workload: Workload, bounds: tuple[Ints, Ints], lengths: OutputLengths
) -> Problem:
    """The problem of queries whose tokens_out is not known, with expectations for costs.

    Args:
        hosts: the models.
        workload: classes of prompt lengths; tokens_out is not looked at.
        bounds: (lower, upper), queries a model.
        lengths: the distribution of tokens_out.
    """
    shape = (len(hosts), len(workload.counts))
    energy_j, runtime_s = np.zeros(shape), np.zeros(shape)
    tokens_out, outside = np.zeros(shape[1]), 0.0
    known = all(host.runtime is not None for host in hosts)
    negative = largest_j = largest_tokens = 0.0
    for c, prompt in enumerate(workload.tokens_in):
        outs, chances = lengths.given(int(prompt))
        pairs = np.full(len(outs), prompt), outs
        tokens_out[c] = outs @ chances
        largest_tokens = max(largest_tokens, float(prompt + outs.max()))
        beyond = np.zeros(len(outs), bool)
        for k, host in enumerate(hosts):
            predicted = host.energy_of(*pairs)
            negative += float((predicted < 0) @ chances) * int(workload.counts[c])
            largest_j = max(largest_j, float(predicted.max()))
            energy_j[k, c] = np.maximum(predicted, 0) @ chances
            beyond |= host.extrapolates(*pairs)
            if known:
                runtime_s[k, c] = np.maximum(host.call_s_of(*pairs), 0) @ chances / host.runtime_batch
        outside += float(beyond @ chances) * int(workload.counts[c])
    return Problem(
        hosts=tuple(hosts),
        workload=workload,
        energy_j=energy_j,
        runtime_s=runtime_s if known else None,
        lower=bounds[0],
        upper=bounds[1],
        negative_pairs=round(negative),
        outside=round(outside),
        expected_tokens=workload.tokens_in + tokens_out,
        # The largest query that may come, so that zeta means what it means where lengths are known.
        largest=(largest_j, largest_tokens),
    )


def in_hindsight(blind: Problem, flow: Ints, known: Problem) -> Floats:
    """What a blind plan comes to once the lengths are known: (K, C) mean queries of each real class.

    A prompt length's queries go to the models in the plan's proportions, whatever their answers turn out to
    be.
    """
    where = np.searchsorted(blind.workload.tokens_in, known.workload.tokens_in)
    parts = flow / blind.workload.counts
    mean: Floats = parts[:, where] * known.workload.counts
    return mean
