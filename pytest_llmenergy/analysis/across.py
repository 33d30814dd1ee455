"""Scaling across models: energy per generated token against the parameters that one token passes through.

A mixture of experts passes a token through some of its parameters: the question of the paper's section 5.2 is
whether it costs what a dense model of its active parameters costs, or of all of them. The line is fitted to
the dense models alone, and the mixtures are held against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llmenergy import student_t
from pytest_llmenergy.analysis import solve
from pytest_llmenergy.analysis.fits import CONFIDENCE
from pytest_llmenergy.backends import presets
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_llmenergy.analysis.fits import Fit
    from pytest_llmenergy.analysis.observations import Observations

_POINTS = 5  # token counts an axis at which models are compared, evenly in the logarithm
_LEAST = 2  # dense models; a line needs two points
_LEAST_RATIO = 1.5  # of the largest to the smallest active parameters, for a slope to mean anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Parameters of a model: all of them, and those that one token passes through."""

    active: float
    total: float

    @property
    def is_dense(self) -> bool:
        """Whether a token passes through all."""
        return self.active >= self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One model's cost per generated token, and how far it lies off the dense models' line."""

    model: str
    size: Size
    per_token: float  # J or s per token of one sequence: geometric mean over the compared token counts
    off_active: float  # fraction above (or below) the line at its active parameters
    off_total: float  # at all its parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Across:
    """per_token = factor x active^exponent, by least squares of the logarithms over dense models."""

    system: str
    metric: str
    batch_size: int
    kv_cache: bool | None
    exponent: float
    interval: tuple[float, float] | None  # None with two models: the line goes through both
    tokens_in: tuple[int, ...]
    tokens_out: tuple[int, ...]
    points: tuple[Point, ...]


def sizes(observations: Observations, given: Mapping[str, Size]) -> dict[str, Size]:
    """What is known of the models' sizes: as given, as their documents say, as the presets have them.

    Raises:
        RequestError: a model's size is not known.
    """
    found = {}
    for model in observations.cells["model"].unique(maintain_order=True).to_list():
        active = observations.active_parameters.get(model)
        preset = presets.known_as(model)
        if model in given:
            found[model] = given[model]
        elif active is not None:
            found[model] = Size(active=active, total=observations.parameters.get(model, active))
        elif preset is not None:
            found[model] = Size(active=preset.active_parameters, total=preset.parameters)
        else:
            raise RequestError(
                f"the parameters of {model!r} are not known. Give them: --active-parameters '{model}=7.2e9', "
                f"or '{model}=12.9e9/46.7e9' (active/all) of a mixture of experts."
            )
    return found


def across(fits: Iterable[Fit], size_of: Mapping[str, Size]) -> list[Across]:
    """Compare the chosen, usable fits that share machine, metric, batch size and generation mode.

    Raises:
        RequestError: no such set has two dense models of different size.
    """
    sets: dict[tuple[object, ...], list[Fit]] = {}
    for fit in fits:
        group = fit.cells.group
        if fit.chosen and fit.verdict.is_usable:
            key = (group.machine, group.system, fit.cells.metric, group.batch_size, group.kv_cache)
            sets.setdefault(key, []).append(fit)
    lines = [line for line in (_line(alike, size_of) for alike in sets.values()) if line is not None]
    if not lines:
        raise RequestError(
            "scaling across models needs usable fits of two dense models or more, of different sizes and "
            "measured on one machine with one batch size. Give their results together."
        )
    return lines


def _line(fits: Sequence[Fit], size_of: Mapping[str, Size]) -> Across | None:
    dense = [fit for fit in fits if size_of[fit.cells.group.model].is_dense]
    active = np.array([size_of[fit.cells.group.model].active for fit in dense])
    if len(dense) < _LEAST or active.max() < _LEAST_RATIO * active.min():
        return None
    group, metric = fits[0].cells.group, fits[0].cells.metric
    tokens_in = _common([(fit.cells.tokens_in.min(), fit.cells.tokens_in.max()) for fit in fits])
    tokens_out = _common([(fit.cells.tokens_out.min(), fit.cells.tokens_out.max()) for fit in fits])
    t, n = np.meshgrid(tokens_in, tokens_out)

    def log_per_token(fit: Fit) -> float:
        cost = fit.energy_model().predict(t, n).mean / (n * group.batch_size)
        return float(np.log(cost).mean())

    design = np.stack([np.ones(len(dense)), np.log(active)], axis=1)
    solution = solve.ordinary(design, np.array([log_per_token(fit) for fit in dense]))
    intercept, exponent = solution.coefficients.tolist()
    interval = None
    if solution.df_resid > 0:
        half = student_t.quantile(CONFIDENCE, solution.df_resid) * float(solution.standard_errors[1])
        interval = (exponent - half, exponent + half)

    def point(fit: Fit) -> Point:
        size, level = size_of[fit.cells.group.model], log_per_token(fit)
        off = [math.expm1(level - intercept - exponent * math.log(x)) for x in (size.active, size.total)]
        return Point(
            model=fit.cells.group.model,
            size=size,
            per_token=math.exp(level),
            off_active=off[0],
            off_total=off[1],
        )

    return Across(
        system=group.system,
        metric=metric,
        batch_size=group.batch_size,
        kv_cache=group.kv_cache,
        exponent=exponent,
        interval=interval,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        points=tuple(sorted((point(fit) for fit in fits), key=lambda point: point.size.active)),
    )


def _common(ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Token counts within every model's range.

    Raises:
        RequestError: there are none.
    """
    least, most = max(low for low, _ in ranges), min(high for _, high in ranges)
    if least > most:
        raise RequestError("the models' token counts do not overlap; measure them on one grid.")
    return tuple(sorted({round(x) for x in np.geomspace(least, most, _POINTS).tolist()}))


def record(line: Across) -> dict[str, Any]:
    """As it stands in fits.json."""
    return {
        "system": line.system,
        "metric": line.metric,
        "batch_size": line.batch_size,
        "kv_cache": line.kv_cache,
        "exponent": line.exponent,
        "exponent_interval": line.interval,
        "tokens_in": line.tokens_in,
        "tokens_out": line.tokens_out,
        "models": [
            {
                "model": point.model,
                "active_parameters": point.size.active,
                "parameters": point.size.total,
                "per_token": point.per_token,
                "off_line_at_active": point.off_active,
                "off_line_at_all": point.off_total,
            }
            for point in line.points
        ],
    }
