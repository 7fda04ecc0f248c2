# Everything a developer runs. `make help` lists it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KEEP   ?=

# One torch thread per test process: two of them share two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu lint format up migrate clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install everything, pinned; quick when nothing changed

$(STAMP): pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt --editable '.[train,dev]'
	touch $@

demo: install  ## A real job, end to end, on this machine; KEEP=1 leaves the service up
	KEEP=$(KEEP) $(BIN)/python examples/demo.py

test: install  ## All tests that need neither a GPU nor patience
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not gpu and not slow"

test-slow: install  ## The long tests
	$(ONE_THREAD) $(BIN)/python -m pytest -m "slow and not gpu"

test-gpu:  ## Kernels and method on a CUDA device; needs torch, triton, transformers, peft and pytest, no .venv
	PYTHONPATH=.:kernels python3 -m pytest tests/gpu

lint: install  ## Style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Put the sources into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: install  ## Start the service in the foreground
	$(BIN)/jenga up

migrate: install  ## Bring the database to the newest schema
	$(BIN)/jenga migrate

clean:  ## Remove the virtual environment, the demo's data and caches
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
