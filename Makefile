# Every target prepares what it needs in .venv; `make help` lists them.
PYTHON ?= python3
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint docs audit bench clean

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
	@echo 'Installing into $(VENV): a minute or more, about 2 GB (more with the CUDA build of PyTorch).'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet '$(TORCH)'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(STAMP) ## generate data, train and evaluate a tiny model on the CPU
	$(BIN)/lit-vlaa quickstart

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# mkdocs-material prints news of its makers unless it is told not to.
docs: $(STAMP) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

audit: ## look for advisories on the pinned dependencies, where a service can be reached
	$(PYTHON) .ci/audit.py

bench: $(BENCH_STAMP) ## measure speed beside TRL, in an environment of its own
	$(BENCH)/bin/python -m benchmarks
	$(BENCH)/bin/python -m benchmarks.scaling

# torchvision, which TRL's image path needs, does not load beside the CPU-only build of PyTorch: the default build it is.
$(BENCH_STAMP): pyproject.toml benchmarks/constraints.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --disable-pip-version-check --quiet --constraint benchmarks/constraints.txt torch torchvision
	$(BENCH)/bin/python -m pip install --disable-pip-version-check --quiet --constraint benchmarks/constraints.txt --editable '.[bench]'
	@touch $@

clean: ## remove caches and build products; environments, runs and data stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache build site *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(BENCH)/*' -prune -exec rm -rf {} +
