"""Backend tests run offline, on one thread."""

import os

import pytest

# Before torch is imported anywhere: two OpenMP threads on a tiny matrix wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for a hub; huggingface_hub reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def backend():
    from pytest_llmenergy.backends import open_backend

    return open_backend(device="cpu", threads=1)


@pytest.fixture(scope="session")
def load(backend):
    """Load a model once in a session."""
    from functools import cache

    return cache(backend.load)
