# Everything below makes its own environment from pinned versions when it is
# missing; those of the benchmarks, of make interop and of make tpu are others,
# for torch and libtpu must not enter .venv.
PYTHON ?= python3.11
VENV := .venv
BENCH := .venv-bench
INTEROP := .venv-interop
TPU := .venv-tpu
BIN := $(VENV)/bin
TAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null || echo py311)
CONSTRAINTS := constraints/$(TAG).txt
WORKDIR ?= runs/quickstart
TESTS ?=
WORKERS ?= $(shell nproc 2>/dev/null || $(PYTHON) -c 'import os; print(os.cpu_count())')

.PHONY: quickstart test slow interop tpu lint format bench

quickstart: $(VENV)/installed  ## train a small familial sweep, fit the law, write the page
	$(BIN)/familial run --config=experiments/quickstart.py --workdir=$(WORKDIR) --workers=$(WORKERS)

test: $(VENV)/test  ## the fast tests, a process a core; TESTS=tests/laws for some
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

slow: $(VENV)/test  ## the tests that take minutes: an hour or two in all
	$(BIN)/python -m pytest -m "slow and not bench"

interop: $(INTEROP)/interop  ## exported and imported models, against transformers
	$(INTEROP)/bin/python -m pytest -m interop tests/interop

tpu: $(TPU)/test $(TPU)/tpu  ## steps compiled for TPUs by libtpu; needs none
	$(TPU)/bin/python -m pytest -m tpu tests/planning

lint: $(VENV)/dev  ## formatter, linter, types, which rooms import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH)/bench  ## timings, as ratios to a peer in the same run
	$(BENCH)/bin/python -m pytest -m "bench and not slow" -s benchmarks

$(VENV)/installed $(BENCH)/installed $(INTEROP)/installed $(TPU)/installed: setup.cfg $(CONSTRAINTS)
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/test $(VENV)/dev: $(VENV)/installed
$(BENCH)/bench: $(BENCH)/installed
$(INTEROP)/interop: $(INTEROP)/installed
$(TPU)/test $(TPU)/tpu: $(TPU)/installed
$(VENV)/test $(VENV)/dev $(BENCH)/bench $(INTEROP)/interop $(TPU)/test $(TPU)/tpu:
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[$(@F)]'
	touch $@
