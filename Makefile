# Everything a developer runs. `make help` lists it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
KEEP   ?=

# One torch thread per test process: two of them share two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

PLAN          ?= grid
BENCH_SECONDS ?= 520
GPUS          ?= 1
BENCH         := PYTHONPATH=.:kernels:$(PYTHONPATH) python3 -u -m benchmarks

KERNEL_TESTS  := $(foreach name,block_scores cross_entropy gated_activation involved_attention rotary rows,tests/gpu/test_$(name).py)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow chaos test-gpu sanitize bench bench-api bench-pages screenshots lint format up migrate clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install everything, pinned; quick when nothing changed

$(STAMP): pyproject.toml constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt --editable '.[train,dev]'
	touch $@

demo: install  ## A real job, end to end, on this machine; KEEP=1 leaves the service up
	KEEP=$(KEEP) $(BIN)/python examples/demo.py

test: install  ## All tests that need neither a GPU nor patience
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not gpu and not slow and not chaos"

test-slow: install  ## The long tests
	$(ONE_THREAD) $(BIN)/python -m pytest -m "slow and not gpu"

chaos: install  ## Kill everything at random moments, on servers of its own; about half an hour
	$(ONE_THREAD) $(BIN)/python -m pytest -m chaos tests/chaos

test-gpu:  ## Kernels and method on a CUDA device; needs torch, triton, transformers, peft and pytest, no .venv
	PYTHONPATH=.:kernels python3 -m pytest tests/gpu

sanitize:  ## The kernels' tests under compute-sanitizer, without a pool that hides a stray access; slow
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=.:kernels compute-sanitizer --tool memcheck --error-exitcode 9 \
		python3 -m pytest $(KERNEL_TESTS) -k "kernel or equals"

bench:  ## Measure speed, memory and kernels on a CUDA device; again until done, each call takes up to 9 minutes
	$(BENCH) speed --plan $(PLAN) --deadline $(BENCH_SECONDS) --gpus $(GPUS)
	$(BENCH) profile --tokens 8192 --policies jenga lora+liger
	$(BENCH) profile --tokens 32768 --policies jenga --recompute full
	$(BENCH) kernels
	$(BENCH) memory --deadline $(BENCH_SECONDS)
	$(BENCH) speed --docs docs/speed.md
	$(BENCH) profile --docs docs/profile.md
	$(BENCH) memory --docs docs/memory.md
	$(BENCH) plots --out docs/speed.svg

bench-api: install  ## Measure the API with 10,000 jobs and 1,000,000 events, on SQLite and PostgreSQL
	$(BIN)/python -m benchmarks api

bench-pages: install  ## Measure the list of 500 jobs in headless Chromium
	$(BIN)/python -m benchmarks pages

screenshots: install  ## Pictures of every page into build/screenshots, some into docs; needs Chromium
	$(BIN)/python -m tests.web.screenshots build/screenshots --docs docs/screenshots

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
