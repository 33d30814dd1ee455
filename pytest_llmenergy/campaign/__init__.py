"""Cells to trials to results."""
