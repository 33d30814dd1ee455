"""The forms a cost may take: named lists of columns, each with a unit and a meaning.

A cost is the energy in J or the runtime in s of one call of the batch; token counts are per sequence. A call
moves all its `batch_size` sequences at once, so a coefficient "per token pass" is that of one position of
every sequence of the batch: fits of different batch sizes are different fits. docs/fits.md derives the sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    Column = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

INTERCEPT = "(intercept)"
LATTICE = 33  # points an axis on which a form with free signs is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One column of a design matrix: a quantity of work, and what its coefficient is a cost of."""

    name: str
    per: str  # the coefficient's unit is J/per or s/per
    meaning: str
    column: Column  # (tokens_in, tokens_out) -> work


def _token_passes(t: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    return n * t + n * (n - 1) / 2


def _attended_pairs(t: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    return n * t * t + t * n * (n - 1) + (n - 1) * n * (2 * n - 1) / 6


TERMS = {
    term.name: term
    for term in (
        Term(
            name=INTERCEPT,
            per="call",
            meaning="what a call costs whatever its tokens; with a KV cache, the prefill's step among it",
            column=lambda t, n: np.ones(np.broadcast_shapes(t.shape, n.shape)),
        ),
        Term(
            name="tokens_in",
            per="token_in",
            meaning="a token of the prompt",
            column=lambda t, n: t + 0 * n,
        ),
        Term(
            name="tokens_out",
            per="token_out",
            meaning="a generated token",
            column=lambda t, n: n + 0 * t,
        ),
        Term(
            name="tokens_in*tokens_out",
            per="token^2",
            meaning="the interaction of Eq. 6 and 7",
            column=lambda t, n: t * n,
        ),
        Term(
            name="tokens_in^2",
            per="prompt_pair",
            meaning="a pair of prompt positions in the prefill's attention",
            column=lambda t, n: t * t + 0 * n,
        ),
        Term(
            name="steps",
            per="step",
            meaning="a generation step: its launches, and one read of the weights",
            column=lambda t, n: n + 0 * t,
        ),
        Term(
            name="token_passes",
            per="pass",
            meaning="a position passed through the linear layers: every step passes all tokens_in + j",
            column=_token_passes,
        ),
        Term(
            name="attended_pairs",
            per="pair",
            meaning="a pair of positions in attention: (tokens_in + j)^2 in step j",
            column=_attended_pairs,
        ),
        Term(
            name="decode_steps",
            per="decode_step",
            meaning="a step after the first: its launches, and one read of the weights",
            column=lambda t, n: n - 1 + 0 * t,
        ),
        Term(
            name="context_reads",
            per="read",
            meaning="a position of the KV cache read by a decode step: tokens_in + j in step j",
            column=lambda t, n: (n - 1) * t + n * (n - 1) / 2,
        ),
    )
}


def columns(
    names: Sequence[str], tokens_in: ArrayLike, tokens_out: ArrayLike
) -> tuple[NDArray[np.float64], ...]:
    """The named terms' work, each an array of the token counts' common shape.

    Raises:
        RequestError: there is no such term.
    """
    t = np.asarray(tokens_in, dtype=np.float64)
    n = np.asarray(tokens_out, dtype=np.float64)
    unknown = [name for name in names if name not in TERMS]
    if unknown:
        raise RequestError(f"there is no coefficient {unknown[0]!r}; there are {', '.join(TERMS)}.")
    return tuple(TERMS[name].column(t, n) for name in names)


def design(names: Sequence[str], tokens_in: ArrayLike, tokens_out: ArrayLike) -> NDArray[np.float64]:
    """The design matrix, one row a cell: shape (cells, terms)."""
    return np.stack(columns(names, tokens_in, tokens_out), axis=-1)


@lru_cache(maxsize=64)
def lattice_design(
    names: tuple[str, ...], ranges: tuple[tuple[int, int], tuple[int, int]]
) -> NDArray[np.float64]:
    """The design matrix of a lattice, evenly in the logarithm: (LATTICE, LATTICE, terms).

    Groups measured on one grid, of which there may be thousands, share it: it is not to be written to.

    Args:
        names: the terms.
        ranges: the least and the largest tokens_in, and those of tokens_out.
    """
    t, n = (np.geomspace(least, most, LATTICE) for least, most in ranges)
    return design(names, t[:, None], n[None, :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form: its terms, and how they are fitted."""

    name: str
    terms: tuple[str, ...]
    relative: bool  # Huber's loss of relative errors is minimised, not squared joules
    nonnegative: bool  # no coefficient below 0, so no prediction below 0
    kv_cache: bool | None  # the generation mode it describes; None: any

    @property
    def intercept(self) -> bool:
        """Whether a constant is among its terms."""
        return INTERCEPT in self.terms

    @property
    def label(self) -> str:
        """The name, and whether a constant was added to the form of that name."""
        added = self.intercept and INTERCEPT not in _BY_NAME[self.name].terms
        return f"{self.name} + constant" if added else self.name

    def suits(self, kv_cache: bool | None) -> bool:
        """Whether it describes that generation mode; where the mode is unknown every form may try."""
        return self.kv_cache is None or kv_cache is None or self.kv_cache is kv_cache


_PAPER = ("tokens_in", "tokens_out", "tokens_in*tokens_out")
_FORMS = (
    # Equations 6 and 7 of Wilkins, Keshav, Mortier (HotCarbon'24), by ordinary least squares.
    Form(name="paper", terms=_PAPER, relative=False, nonnegative=False, kv_cache=None),
    Form(name="paper-relative", terms=_PAPER, relative=True, nonnegative=True, kv_cache=None),
    Form(
        name="token-pass-linear",
        terms=("steps", "token_passes"),
        relative=True,
        nonnegative=True,
        kv_cache=False,
    ),
    Form(
        name="token-pass",
        terms=("steps", "token_passes", "attended_pairs"),
        relative=True,
        nonnegative=True,
        kv_cache=False,
    ),
    Form(
        name="kv-cache-linear",
        terms=(INTERCEPT, "tokens_in", "decode_steps", "context_reads"),
        relative=True,
        nonnegative=True,
        kv_cache=True,
    ),
    Form(
        name="kv-cache",
        terms=(INTERCEPT, "tokens_in", "tokens_in^2", "decode_steps", "context_reads"),
        relative=True,
        nonnegative=True,
        kv_cache=True,
    ),
)
_BY_NAME = {form.name: form for form in _FORMS}
FORM_NAMES = tuple(_BY_NAME)


def form_named(name: str, *, intercept: bool = False) -> Form:
    """The form of that name, with a constant added where asked for.

    Raises:
        RequestError: there is no such form.
    """
    if name not in _BY_NAME:
        raise RequestError(f"there is no form {name!r}; there are {', '.join(FORM_NAMES)}.")
    form = _BY_NAME[name]
    if not intercept or form.intercept:
        return form
    return Form(
        name=form.name,
        terms=(INTERCEPT, *form.terms),
        relative=form.relative,
        nonnegative=form.nonnegative,
        kv_cache=form.kv_cache,
    )


def forms_for(kv_cache: bool | None) -> tuple[Form, ...]:
    """Every form that may describe the generation mode, the paper's for comparison among them."""
    with_constant = ("paper", "token-pass")
    every = (*_FORMS, *(form_named(name, intercept=True) for name in with_constant))
    return tuple(
        form
        for form in sorted(every, key=lambda form: (FORM_NAMES.index(form.name), len(form.terms)))
        if form.suits(kv_cache)
    )
