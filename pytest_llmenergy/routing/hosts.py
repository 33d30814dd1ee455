"""A model that may serve queries: its energy, its runtime, its accuracy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmenergy.backends import presets
from pytest_llmenergy.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pytest_llmenergy.analysis.energy_model import EnergyModel

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

RUNTIME = "runtime_s"
ENERGIES = ("energy_j", "gpu_energy_j", "cpu_energy_j")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One model on one system.

    A fit predicts a call of `batch_size` sequences. A query is one of them: it takes that part of the call's
    energy and of its GPU time, and waits for the whole of it (docs/decisions/0030).
    """

    name: str
    accuracy: float  # A_K, 0..1
    energy: EnergyModel
    runtime: EnergyModel | None

    @property
    def n_gpus(self) -> int | None:
        """GPUs of one instance; None where the fit does not say."""
        return self.energy.n_gpus

    @property
    def runtime_batch(self) -> int:
        """Sequences of one call of the runtime's fit."""
        return (self.runtime.batch_size if self.runtime is not None else None) or 1

    def energy_of(self, tokens_in: Ints, tokens_out: Ints) -> Floats:
        """Energy in J of one query; an unclipped prediction, which the paper's form lets fall below 0."""
        return self.energy.predict(tokens_in, tokens_out).mean / (self.energy.batch_size or 1)

    def runtime_of(self, tokens_in: Ints, tokens_out: Ints) -> Floats | None:
        """Seconds of an instance's time that one query takes; None without a fit of the runtime."""
        if self.runtime is None:
            return None
        return self.runtime.predict(tokens_in, tokens_out).mean / self.runtime_batch

    def call_s_of(self, tokens_in: Ints, tokens_out: Ints) -> Floats:
        """Seconds that a query waits for its call."""
        if self.runtime is None:
            raise RequestError(f"{self.name} has no fit of runtime_s. Add one to the fits.")
        return self.runtime.predict(tokens_in, tokens_out).mean

    def extrapolates(self, tokens_in: Ints, tokens_out: Ints) -> NDArray[np.bool_]:
        """Where a query lies beyond what the model was fitted on."""
        outside = self.energy.extrapolates(tokens_in, tokens_out)
        if self.runtime is not None:
            outside = outside | self.runtime.extrapolates(tokens_in, tokens_out)
        return outside


def choose_hosts(
    fits: Sequence[EnergyModel],
    *,
    metric: str | None = None,
    only: Sequence[str] = (),
    accuracies: Mapping[str, float] | None = None,
    allow_unusable: bool = False,
) -> tuple[Host, ...]:
    """The models to route between, in the order of the fits.

    A model fitted on several systems is several hosts, named MODEL@SYSTEM.

    Args:
        fits: one per model, system and metric.
        metric: which energy; else energy_j where every model has it, else gpu_energy_j.
        only: names to keep; all where empty.
        accuracies: A_K by model; the presets' where not given.
        allow_unusable: take fits that say of themselves that they are not usable.

    Raises:
        RequestError: a model lacks a fit or an accuracy, has two, or a fit is not usable.
    """
    systems: dict[str, list[str]] = {}
    for fit in fits:
        systems.setdefault(fit.model, [])
        if fit.system not in systems[fit.model]:
            systems[fit.model].append(fit.system)
    names = {
        f"{model}@{system}" if len(found) > 1 else model: (model, system)
        for model, found in systems.items()
        for system in found
    }
    for name in only:
        if name not in names:
            raise RequestError(f"there is no fit of {name}. The fits have {', '.join(names)}.")
    chosen = {name: key for name, key in names.items() if not only or name in only}
    metric = metric or _metric_of(fits, chosen)
    _check_accuracies(accuracies or {}, chosen)
    return tuple(
        Host(
            name=name,
            accuracy=_accuracy_of(name, key[0], accuracies or {}),
            energy=_only_fit(name, key, metric, fits, allow_unusable=allow_unusable),
            runtime=(
                _only_fit(name, key, RUNTIME, fits, allow_unusable=allow_unusable)
                if any((fit.model, fit.system, fit.metric) == (*key, RUNTIME) for fit in fits)
                else None
            ),
        )
        for name, key in chosen.items()
    )


def _metric_of(fits: Sequence[EnergyModel], chosen: Mapping[str, tuple[str, str]]) -> str:
    have = {
        metric: {(fit.model, fit.system) for fit in fits if fit.metric == metric}
        for metric in ("energy_j", "gpu_energy_j")
    }
    for metric, keys in have.items():
        if keys >= set(chosen.values()):
            return metric
    best = max(have, key=lambda metric: len(have[metric] & set(chosen.values())))
    lacking = [name for name, key in chosen.items() if key not in have[best]]
    raise RequestError(
        f"no fit of {best} for {', '.join(lacking)}. Fit it, or leave the model out with --models."
    )


def _only_fit(
    name: str, key: tuple[str, str], metric: str, fits: Sequence[EnergyModel], *, allow_unusable: bool
) -> EnergyModel:
    found = [fit for fit in fits if (fit.model, fit.system, fit.metric) == (*key, metric)]
    if not found:
        raise RequestError(f"no fit of {metric} for {name}. Fit it, or leave the model out with --models.")
    if len(found) > 1:
        told = "; ".join(
            f"{fit.form}, batch {fit.batch_size}, KV cache {fit.kv_cache}, {fit.n_gpus} GPUs" for fit in found
        )
        raise RequestError(f"{len(found)} fits of {metric} for {name} ({told}). Keep one in the fits.")
    if found[0].is_usable is False and not allow_unusable:
        why = "; ".join(found[0].reasons) or "it does not say why"
        raise RequestError(
            f"the fit of {metric} for {name} is not usable: {why}. "
            "Fit another form (`llmenergy-report fit --form auto`), or say --allow-unusable."
        )
    return found[0]


def _check_accuracies(accuracies: Mapping[str, float], chosen: Mapping[str, tuple[str, str]]) -> None:
    models = {model for model, _ in chosen.values()}
    for name, value in accuracies.items():
        if name not in chosen and name not in models:
            raise RequestError(f"--accuracy {name}: no such model. There are {', '.join(chosen)}.")
        if not 0 <= value <= 1:
            raise RequestError(f"--accuracy {name}={value:g}: write a fraction of 1, or a percentage (61%).")


def _accuracy_of(name: str, model: str, accuracies: Mapping[str, float]) -> float:
    for key in (name, model):
        if key in accuracies:
            return accuracies[key]
    known = presets.accuracy(model)
    if known is None:
        option = shlex.quote(f"{name}=0.61")
        raise RequestError(f"the accuracy of {name} is not known. Give it: --accuracy {option}, say.")
    return known
