"""Equation 2 as arrays: what each class of queries costs at each model, and how many each may get.

Wilkins, Keshav and Mortier, Offline Energy-Optimal LLM Serving (HotCarbon'24), section 4. Energy and accuracy
are divided by the largest value over all (query, model) pairs of the workload: its dynamic normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llmenergy import units
from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.routing.solve import InfeasibleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pytest_llmenergy.routing.hosts import Host
    from pytest_llmenergy.routing.workload import Workload

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What an assignment adds up to over the workload."""

    energy_j: float
    runtime_s: float | None  # None: no model of the runtime
    accuracy: float  # mean A_K weighted by tokens_in + tokens_out, 0..1
    counts: Ints  # (K,), queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A workload and the models that may serve it; arrays of pairs are (K, C)."""

    hosts: tuple[Host, ...]
    workload: Workload
    energy_j: Floats  # of one query
    runtime_s: Floats | None  # of one query
    lower: Ints  # (K,), fewest queries
    upper: Ints  # (K,), most
    negative_pairs: int = 0  # queries times models whose predicted energy was below 0, counted as 0
    outside: int = 0  # queries beyond the token counts some model was fitted on
    allowed: NDArray[np.bool_] | None = None  # pairs that may be; None: all
    latency_s: float | None = None  # which call_s of an allowed pair is at most
    call_s: Floats | None = None  # that a query waits for its call, where a latency is asked
    expected_tokens: Floats | None = None  # (C,), where tokens_out is not known
    largest: tuple[float, float] | None = (
        None  # energy in J and tokens of a query, where not known from pairs
    )

    @property
    def tokens(self) -> Floats:
        """tokens_in + tokens_out of one query of each class, (C,)."""
        return self.workload.tokens.astype(float) if self.expected_tokens is None else self.expected_tokens

    @property
    def models(self) -> tuple[str, ...]:
        """The models' names, in order."""
        return tuple(host.name for host in self.hosts)

    @property
    def accuracies(self) -> Floats:
        """A_K, (K,)."""
        return np.array([host.accuracy for host in self.hosts])

    @property
    def energy_scale_j(self) -> float:
        """The largest energy of any (query, model) pair."""
        return (float(self.energy_j.max()) if self.largest is None else self.largest[0]) or 1.0

    @property
    def accuracy_scale(self) -> float:
        """The largest a_K of any pair (equation 1)."""
        tokens = self.tokens.max() if self.largest is None else self.largest[1]
        return float(self.accuracies.max() * tokens) or 1.0

    def accuracy_values(self) -> Floats:
        """a_K (equation 1) of every pair, normalised."""
        return np.multiply.outer(self.accuracies / self.accuracy_scale, self.tokens)

    def costs(self, zeta: float) -> Floats:
        """Equation 2: what sending one query of each class to each model adds to the objective."""
        costs = zeta / self.energy_scale_j * self.energy_j - (1 - zeta) * self.accuracy_values()
        return costs if self.allowed is None else np.where(self.allowed, costs, np.inf)

    def totals(self, flow: Ints | Floats) -> Totals:
        """Energy, runtime and accuracy of an assignment (K, C)."""
        weight = flow @ self.tokens
        tokens = weight.sum()
        return Totals(
            energy_j=float(np.vdot(flow, self.energy_j)),
            runtime_s=None if self.runtime_s is None else float(np.vdot(flow, self.runtime_s)),
            accuracy=float(weight @ self.accuracies / tokens) if tokens else float("nan"),
            counts=flow.sum(axis=1),
        )

    def objective(self, totals: Totals, zeta: float) -> float:
        """Equation 2 of an assignment, by its totals."""
        value = totals.accuracy * float(self.tokens @ self.workload.counts)
        return zeta * totals.energy_j / self.energy_scale_j - (1 - zeta) * value / self.accuracy_scale


def check_zeta(zeta: float) -> None:
    """Refuse what is no trade-off.

    Raises:
        RequestError: zeta is not in [0, 1].
    """
    if not 0 <= zeta <= 1:
        raise RequestError(
            f"zeta is {zeta:g}; it is a share of energy in the objective, between 0 (accuracy alone) and 1."
        )


def make_problem(
    hosts: Sequence[Host],
    workload: Workload,
    bounds: tuple[Ints, Ints],
    *,
    latency_s: float | None = None,
) -> Problem:
    """Predict the cost of every pair.

    Args:
        hosts: the models.
        workload: the queries.
        bounds: (lower, upper), queries a model.
        latency_s: a query may only go where its call is predicted to take no longer.

    Raises:
        RequestError: a prediction is not a number, or a latency is asked of models without a runtime.
        InfeasibleError: no model serves some query in time.
    """
    pairs = workload.tokens_in, workload.tokens_out
    energy_j = np.stack([host.energy_of(*pairs) for host in hosts])
    negative = energy_j < 0
    runtimes = [host.runtime_of(*pairs) for host in hosts]
    known = [runtime_s for runtime_s in runtimes if runtime_s is not None]
    runtime_s = np.stack(known) if len(known) == len(hosts) else None
    for name, values in (("energy", energy_j), ("runtime", runtime_s)):
        if values is not None and not np.isfinite(values).all():
            raise RequestError(f"a predicted {name} is not a number. Check the fits' coefficients.")
    call_s = allowed = None
    if latency_s is not None:
        call_s = _calls(hosts, workload, latency_s)
        allowed = call_s <= latency_s
    outside = np.zeros(len(workload.counts), bool)
    for host in hosts:
        outside |= host.extrapolates(*pairs)
    return Problem(
        hosts=tuple(hosts),
        workload=workload,
        energy_j=np.maximum(energy_j, 0),
        runtime_s=None if runtime_s is None else np.maximum(runtime_s, 0),
        lower=bounds[0],
        upper=bounds[1],
        negative_pairs=int(negative.sum(axis=0) @ workload.counts),
        outside=int(workload.counts[outside].sum()),
        allowed=allowed,
        latency_s=latency_s,
        call_s=call_s,
    )


def _calls(hosts: Sequence[Host], workload: Workload, latency_s: float) -> Floats:
    """Seconds that each pair's call takes, (K, C), of which every query has one in time."""
    lacking = [host.name for host in hosts if host.runtime is None]
    if lacking:
        raise RequestError(
            f"--latency-at-most needs a fit of runtime_s for {', '.join(lacking)}. "
            "Add it to the fits (`llmenergy-report fit RESULTS`)."
        )
    call_s = np.stack([host.call_s_of(workload.tokens_in, workload.tokens_out) for host in hosts])
    quickest_s = call_s.min(axis=0)
    late = ~(quickest_s <= latency_s)
    if late.any():
        raise InfeasibleError(
            f"--latency-at-most {latency_s:g} leaves {int(workload.counts[late].sum())} of "
            f"{units.format_count(workload.queries, 'query', 'queries')} no model at all. "
            f"The least that leaves each of them one is {units.round_up(float(quickest_s.max())):g} s."
        )
    return call_s


def share_bounds(
    models: Sequence[str],
    queries: int,
    *,
    exact: Mapping[str, float] | None = None,
    least: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
    some_each: bool = True,
) -> tuple[Ints, Ints]:
    """How many queries each model gets: (lower, upper), each (K,).

    Exact shares are rounded by largest remainder. Where a model has no bound, equation 3 holds: it gets some
    queries, and not all.

    Raises:
        RequestError: shares of models that are not there, outside [0, 1], or that do not sum to one.
    """
    exact, least, most = dict(exact or {}), dict(least or {}), dict(most or {})
    for option, shares in (("--share", exact), ("--min-share", least), ("--max-share", most)):
        _check_shares(option, shares, models)
    if exact:
        return _exact_bounds(models, queries, exact, least, most)
    for name in set(least) & set(most):
        if least[name] > most[name]:
            raise RequestError(
                f"--min-share {name}={least[name]:g} is above --max-share {name}={most[name]:g}. Lower one."
            )
    if some_each and len(models) == 1 and not most:
        raise RequestError(
            f"one model alone ({models[0]}) leaves nothing to route: equation 3 gives no model every query. "
            "Add the fit of another model."
        )
    one, all_but_one = (1, queries - 1) if some_each else (0, queries)
    # A whole share of the queries must not be lost to rounding: 0.07 of 100 is 7.000000000000001.
    slack = _SUM_TOLERANCE * queries
    lower = [int(np.ceil(least[m] * queries - slack)) if m in least else one for m in models]
    upper = [int(np.floor(most[m] * queries + slack)) if m in most else all_but_one for m in models]
    if sum(lower) > queries:
        raise RequestError(
            f"{units.format_count(queries, 'query', 'queries')} cannot give each of {len(models)} models "
            f"its least ({sum(lower)} in all; "
            "1 where no least share is given, by equation 3). Lower a --min-share, or give more queries."
        )
    if sum(upper) < queries:
        raise RequestError(
            f"the largest shares sum to {sum(upper)} of {queries} queries. Raise a --max-share."
        )
    return np.array(lower), np.maximum(np.array(upper), np.array(lower))


def _check_shares(option: str, shares: Mapping[str, float], models: Sequence[str]) -> None:
    for name, share in shares.items():
        if name not in models:
            raise RequestError(f"{option} {name}: no such model. There are {', '.join(models)}.")
        if not 0 <= share <= 1:
            raise RequestError(f"{option} {name}={share:g}: a share lies between 0 and 1.")


def _exact_bounds(
    models: Sequence[str],
    queries: int,
    exact: Mapping[str, float],
    least: Mapping[str, float],
    most: Mapping[str, float],
) -> tuple[Ints, Ints]:
    if least or most:
        raise RequestError("--share fixes every model's share: leave --min-share and --max-share out.")
    missing = [model for model in models if model not in exact]
    if missing:
        raise RequestError(f"--share has nothing for {', '.join(missing)}. Add --share {missing[0]}=0, say.")
    total = sum(exact.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise RequestError(
            f"the shares sum to {total:g}, not 1: {', '.join(f'{m}={exact[m]:g}' for m in models)}. "
            "Change one so that they do."
        )
    counts = largest_remainder([exact[model] for model in models], queries)
    return counts, counts.copy()


def largest_remainder(shares: Sequence[float], queries: int) -> Ints:
    """Whole counts nearest to the shares that add up to the queries."""
    quotas = np.array(shares) * queries
    counts: Ints = np.floor(quotas).astype(np.int64)
    by_remainder = np.argsort(-(quotas - counts), kind="stable")
    counts[by_remainder[: queries - int(counts.sum())]] += 1
    return counts
