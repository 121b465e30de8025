# Each target creates its environment from pinned versions if it is missing. The
# benchmarks, `make interop` and `make tpu` have their own environments, because
# torch and libtpu must not enter .venv.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(if $(shell command -v python$v),python$v)) python3)
VENV := .venv
BENCH := .venv-bench
INTEROP := .venv-interop
TPU := .venv-tpu
BIN := $(VENV)/bin
TAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := constraints/$(TAG).txt
WORKDIR ?= runs/quickstart
TESTS ?=
WORKERS ?= $(shell nproc 2>/dev/null || $(PYTHON) -c 'import os; print(os.cpu_count())')

.PHONY: help quickstart test slow interop tpu lint format bench

help:  ## these targets
	@echo 'make TARGET [PYTHON=python3.11] [VENV=.venv]'
	@sed -n 's/^\([a-z]*\):.*  ## /  \1\t/p' $(MAKEFILE_LIST)

quickstart: $(VENV)/installed  ## train a small familial sweep, fit the law, write the page
	$(BIN)/familial run --config=experiments/quickstart.py --workdir=$(WORKDIR) --workers=$(WORKERS)

test: $(VENV)/test  ## fast tests, one process per core; TESTS=tests/laws selects some
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

slow: $(VENV)/test  ## tests that take minutes each; one to two hours in total
	$(BIN)/python -m pytest -m "slow and not bench"

interop: $(INTEROP)/interop  ## exported and imported models, compared with transformers
	$(INTEROP)/bin/python -m pytest -m interop tests/interop

tpu: $(TPU)/test $(TPU)/tpu  ## training steps compiled for TPUs by libtpu; needs no TPU
	$(TPU)/bin/python -m pytest -m tpu tests/planning

lint: $(VENV)/dev  ## formatter, linter, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/dev  ## formats, and mends what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH)/bench  ## timings, as ratios to a peer in the same run
	$(BENCH)/bin/python -m pytest -m "bench and not slow" -s benchmarks

$(VENV)/installed $(BENCH)/installed $(INTEROP)/installed $(TPU)/installed: setup.cfg $(CONSTRAINTS)
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	touch $@

$(CONSTRAINTS):
	@echo '$(PYTHON): $(or $(TAG),not found); constraints/ has $(basename $(notdir $(wildcard constraints/*.txt))), as make PYTHON=python3.12' >&2
	@exit 1

$(VENV)/test $(VENV)/dev: $(VENV)/installed
$(BENCH)/bench: $(BENCH)/installed
$(INTEROP)/interop: $(INTEROP)/installed
$(TPU)/test $(TPU)/tpu: $(TPU)/installed
$(VENV)/test $(VENV)/dev $(BENCH)/bench $(INTEROP)/interop $(TPU)/test $(TPU)/tpu:
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[$(@F)]'
	touch $@
