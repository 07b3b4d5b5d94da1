# `make demo` or `make test` on a bare clone sets everything up first; it needs Python >= 3.11, git and make.
PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS := $(basename $(notdir $(filter-out tests/benchmarks/_%,$(wildcard tests/benchmarks/*.py))))
# One process per core, one thread each: the tests are many small computations.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(shell nproc 2>/dev/null || echo 2) --dist worksteal -q

.PHONY: help setup demo test test-all check format bench bench-samplers
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ { printf "make %-15s %s\n", $$1, $$2 }' Makefile

setup: .venv/.ready  ## .venv with everything in it (does nothing if it is up to date)

.venv/.ready: pyproject.toml tools/bootstrap.py
	$(PYTHON) tools/bootstrap.py

demo: setup  ## train, sample and evaluate on real data; writes runs/demo*/index.html
	$(BIN)/polydiff demo vision
	$(BIN)/polydiff demo text
	$(BIN)/polydiff demo molecules
	$(BIN)/polydiff demo timeseries

test: setup  ## the tests, without the slow ones
	$(PYTEST)

test-all: setup  ## every test
	$(PYTEST) -m ""

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup  ## put the code in the form that `make check` wants
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: setup  ## the side-by-side measurements, one after the other; each writes its JSON
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name; done

bench-samplers: setup  ## the solvers beside diffusers, k-diffusion's formulas and azula
	$(BIN)/python -m tests.benchmarks.samplers
