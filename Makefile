# Every target prepares what it needs in .venv; `make help` lists them.
PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo '  PYTHON=python3.12 make ...   another interpreter (3.11 or later)'
	@echo '  JOBS=8 make test             more test processes'

setup: $(STAMP) ## install the project and its tools into .venv

# PyTorch goes first and alone, so that pip takes the build that this machine's index prefers (CPU or CUDA).
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or later is needed; name one, as in: make setup PYTHON=python3.12' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet '$(TORCH)'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(STAMP) ## generate data, train and evaluate a tiny model on the CPU
	$(BIN)/lit-vlaa quickstart

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(STAMP) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## measure speed
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.rewards

clean: ## remove caches and build products; .venv, runs and data stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
