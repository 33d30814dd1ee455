"""Section 6.1 of the paper: energy and runtime over the grid of prompt and generated tokens."""

import pytest


@pytest.mark.llmenergy(sweep="grid")
def test_token_grid(energy, model, tokens_in, tokens_out):
    """One cell of the token grid."""
    energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out)
