"""Anything above to tables, figures and one page."""
