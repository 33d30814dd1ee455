# Two commands do everything: `make bench` measures the embedded default, `make test` passes the checks.
PYTHON ?= python3
RUN := .venv/bin/python -m

# Set, it would make every process compile what it imports anew.
export PYTHONDONTWRITEBYTECODE =
# Two OpenMP threads on two shared cores wait for each other more than they work.
export OMP_NUM_THREADS ?= 1

.PHONY: bench test setup

bench:
	@$(PYTHON) bootstrap.py bench
	$(RUN) pytest bench/ --llm-energy --benchmark-disable

test:
	@$(PYTHON) bootstrap.py dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	.venv/bin/lint-imports
	$(RUN) coverage erase
	$(RUN) coverage run -m pytest -n 2
	@$(RUN) coverage combine --quiet
	$(RUN) coverage report

setup:
	@$(PYTHON) bootstrap.py dev
