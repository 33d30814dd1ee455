"""What the routing benchmarks share: workloads shaped like Alpaca, and the paper's coefficients."""

from __future__ import annotations

import resource

import numpy as np

from pytest_llmenergy.analysis.energy_model import EnergyModel
from pytest_llmenergy.routing.hosts import Host

TERMS = ("tokens_in", "tokens_out", "tokens_in*tokens_out")
# The Llama-2 trio of the paper: energy in J, runtime in s, accuracy A_K.
TRIO = (
    ("llama-2-7b", (-3.894991, 31.522735, 0.042712), (-0.010021, 0.083515, 0.000107), 0.5097),
    ("llama-2-13b", (-6.794323, 56.008311, 0.072861), (-0.017357, 0.142605, 0.000185), 0.5569),
    ("llama-2-70b", (-12.0294, 414.8197, 0.3145), (-0.031204, 0.703173, 0.000533), 0.6452),
)
TRIO_SHARES = (0.05, 0.2, 0.75)


def alpaca_like(queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of median 18 tokens, answers of mean 163: the marginals of the Alpaca set."""
    rng = np.random.default_rng(seed)
    tokens_in = np.maximum(1, np.rint(np.exp(rng.normal(np.log(18), 0.45, queries)))).astype(np.int64)
    tokens_out = np.maximum(1, np.rint(rng.gamma(0.85, 191, queries))).astype(np.int64)
    return tokens_in, tokens_out


def made_up(models: int) -> tuple[list[Host], list[float]]:
    """The trio, or so many models of sizes in between, with random shares; from a fixed seed."""
    if models == len(TRIO):
        rows, shares = list(TRIO), list(TRIO_SHARES)
    else:
        rng = np.random.default_rng(models)
        sizes = np.sort(rng.uniform(0.3, 13, models))
        rows = [
            (
                f"model-{k}",
                tuple(size * rng.uniform(0.8, 1.25, 3) * (-4, 32, 0.04)),
                tuple(size * np.array((-0.01, 0.08, 0.0001))),
                float(0.4 + 0.3 * k / models),
            )
            for k, size in enumerate(sizes)
        ]
        shares = rng.dirichlet(np.full(models, 3.0)).tolist()
    hosts = []
    for name, energy, runtime, accuracy in rows:
        fits = [
            EnergyModel(
                model=name,
                system="made up",
                metric=metric,
                form="paper",
                coefficients=dict(zip(TERMS, map(float, values), strict=True)),
            )
            for metric, values in (("gpu_energy_j", energy), ("runtime_s", runtime))
        ]
        hosts.append(Host(name=name, accuracy=accuracy, energy=fits[0], runtime=fits[1]))
    return hosts, shares


def peak_gb() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
