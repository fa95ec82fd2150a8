# The two commands of the README are `make demo` and `make test`; each does its own set-up in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := runs/fashion_mnist
WORKERS ?= 2
export PYTHONDONTWRITEBYTECODE :=  # pytest compiles each test module once, not in every run and process
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-fast test-gpu test-aarch64 mutants check bench bench-all format clean

demo: $(VENV)/.all  ## a trained ViT from its checkpoint to a proven artifact and a report, in $(DEMO)
	$(BIN)/vitdeploy build recipes/fashion_mnist.toml -o $(DEMO)

test: $(VENV)/.dev  ## the whole test suite
	$(PYTEST)

test-fast: $(VENV)/.dev  ## all but the slow tests
	$(PYTEST) -m "not slow"

test-gpu: $(VENV)/.dev  ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

test-aarch64: $(VENV)/.all  ## the demo's forms verified on an emulated 64-bit Arm box (Debian's debootstrap, qemu-user-static)
	$(BIN)/python -m tests.benchmarks.aarch64

ROOMS := graph quant proof measure backends isolate data files
SAMPLE := 25
SEED := 0
mutants: $(VENV)/.dev  ## plant mistakes in ROOMS, SAMPLE a room by SEED, and see whether the tests notice
	$(BIN)/python tests/mutants.py --room $(ROOMS) --sample $(SAMPLE) --seed $(SEED) --store
	$(BIN)/python tests/mutants.py --table

check: $(VENV)/.dev  ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## latency of the engines side by side; wants an otherwise idle machine
	$(BIN)/python -m tests.benchmarks.engines
	$(BIN)/python -m tests.benchmarks.tables

bench-all: $(VENV)/.dev  ## every benchmark under tests/benchmarks, in turn
	@set -e; for name in $$($(BIN)/python -c "from tests.benchmarks.figures import KINDS; print(*KINDS)"); do \
	  echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name; done
	$(BIN)/python -m tests.benchmarks.tables

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first: its pinned build must be there before anything else asks for torch
$(VENV)/.all: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing vitdeploy with torch, ONNX Runtime and OpenVINO into $(VENV) (minutes the first time)"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.all
	$(PIP) -e '.[dev]'
	@touch $@
