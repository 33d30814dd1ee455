"""Results to fits, tests and verdicts."""
