"""Section 5.1.2 of the paper: energy and runtime against the number of generated tokens."""

import pytest


@pytest.mark.llmenergy(sweep="output")
def test_output_sweep(energy, model, tokens_in, tokens_out):
    """One cell of the output sweep."""
    energy.cell(model=model, tokens_in=tokens_in, tokens_out=tokens_out)
