"""Section 5.1.1 of the paper: energy and runtime against the length of the prompt."""

import pytest


@pytest.mark.llmenergy(sweep="input")
def test_input_sweep(energy, model, tokens_in, tokens_out):
    """One cell of the input sweep."""
    energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out)
