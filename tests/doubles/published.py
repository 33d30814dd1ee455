"""The paper's own measurements, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared" / "paper"
MODELS = ("falcon-7b", "llama-2-7b", "mistral-7b")


def paper(*names: str) -> list[Path]:
    """Files of the paper's data; the test is skipped, saying so, where they are absent."""
    paths = [SHARED / name for name in names]
    missing = [path for path in paths if not path.exists()]
    if missing:
        pytest.skip(f"the paper's data are not at {missing[0]}")
    return paths
