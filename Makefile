# `make demo` and `make test` do all the set-up: a virtual environment in .venv, remade when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# neighbouring tests share what their fixtures made: work is handed out in long runs of tests
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest test-newest check lint types structure docs docs-write clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.light ## Optimize the trained model shipped with the project; size, latency and accuracy before and after
	$(BIN)/onnx-opt demo

test: $(VENV)/.dev ## Run the test suite
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-lowest: $(VENV)/.dev ## Run the fast suite on the oldest releases that are allowed
	.ci/lowest $(ARGS)

test-newest: $(VENV)/.dev ## Run the fast suite on the newest releases
	.ci/newest $(ARGS)

check: lint types docs structure ## Everything CI checks besides the tests

lint: $(VENV)/.dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(VENV)/.dev ## Check types (mypy strict)
	$(BIN)/python tools/dev/check_types.py

structure: $(VENV)/.dev ## Fail where the source is less readable than recorded
	$(BIN)/python tools/dev/check_structure.py

docs: $(VENV)/.dev ## Fail where the generated docs are stale
	$(BIN)/python tools/dev/docs_passes.py --check
	$(BIN)/python tools/dev/docs_targets.py --check

docs-write: $(VENV)/.dev ## Regenerate the generated docs
	$(BIN)/python tools/dev/docs_passes.py
	$(BIN)/python tools/dev/docs_targets.py

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON): Python 3.10 or newer is needed"; echo "  fix: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.light: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.light $@
