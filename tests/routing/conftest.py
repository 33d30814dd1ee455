"""A small trade-off with a known truth, and the published workload where it is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_llmenergy.analysis.energy_model import EnergyModel, load_fits
from pytest_llmenergy.routing.hosts import choose_hosts
from pytest_llmenergy.routing.problem import make_problem, share_bounds
from pytest_llmenergy.routing.workload import read_workload, workload_of

WORKLOADS = Path(__file__).parents[2].parent / "shared" / "workloads"
PAPER_SHARES = {"llama-2-7b": 0.05, "llama-2-13b": 0.2, "llama-2-70b": 0.75}


def model(name, per_token_j, per_token_s=0.01, **fields):
    """Energy and runtime in proportion to tokens_out, with a little of the product."""
    terms = ("tokens_in", "tokens_out", "tokens_in*tokens_out")
    return [
        EnergyModel(
            model=name,
            system="node",
            metric=metric,
            form="paper",
            coefficients=dict(zip(terms, (rate / 10, rate, rate / 1000), strict=True)),
            **fields,
        )
        for metric, rate in (("energy_j", per_token_j), ("runtime_s", per_token_s))
    ]


@pytest.fixture
def hosts():
    """Three models: the dearer, the more accurate."""
    fits = [
        *model("small", 1.0, 0.01, n_gpus=1),
        *model("medium", 2.5, 0.02, n_gpus=2),
        *model("large", 12.0, 0.05, n_gpus=4),
    ]
    return choose_hosts(fits, accuracies={"small": 0.5, "medium": 0.56, "large": 0.65})


@pytest.fixture
def workload():
    """Three hundred queries of many lengths, from a fixed seed."""
    rng = np.random.default_rng(7)
    return workload_of(rng.integers(1, 60, 300), rng.geometric(0.02, 300))


@pytest.fixture
def problem(hosts, workload):
    """Equation 3 alone."""
    return make_problem(hosts, workload, share_bounds([h.name for h in hosts], workload.queries))


@pytest.fixture(scope="session")
def alpaca():
    """The Alpaca-like workload and the Llama-2 trio with the paper's coefficients and shares."""
    if not WORKLOADS.is_dir():
        pytest.skip(f"the published workload is not at {WORKLOADS}")
    trio = choose_hosts(load_fits(WORKLOADS / "llama-2-paper-coefficients.csv"))
    queries = read_workload(WORKLOADS / "alpaca-like-52002.csv")
    bounds = share_bounds([h.name for h in trio], queries.queries, exact=PAPER_SHARES)
    return make_problem(trio, queries, bounds)
