# Every target makes the virtual environment first when there is none: Python 3.11+ and make are all that it needs.
#   make demo       the whole way on a generated catalogue, in runs/demo/
#   make test       the fast tests            make test-slow   the slow ones
#   make lint       ruff and pyright          make format      let ruff rewrite the files
#   make bundle CONFIG=FILE   rebuild the published bundle of a recipe's YAML from public data, in runs/bundles/
#   make results    write README's table from recipes/results/ and fail when it was another
# PYTHON=python3.12 picks the interpreter, VENV=DIR another environment, CONSTRAINTS=FILE other pins.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' $(CONSTRAINTS))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Nothing below reaches for a network: what a run needs is made on the spot or stands in a folder.
export HF_HUB_OFFLINE = 1
export HF_DATASETS_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
# On tiny models a second thread waits more than it works, and far more when the cores are busy.
export OMP_NUM_THREADS ?= 1

FAST = not slow and not real and not gpu and not benchmark
SLOW = slow and not real and not gpu and not benchmark
# Tests on the public datasets join in where LLMREC_REAL_DATA names their folder.
ifneq ($(LLMREC_REAL_DATA),)
FAST = not slow and not gpu and not benchmark
SLOW = slow and not gpu and not benchmark
endif

.PHONY: demo test test-slow lint format bundle results install

install: $(STAMP)

# torch comes first and alone, so that its exact pin decides which build is taken.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once, some minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python recipes/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -m "$(FAST)" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "$(SLOW)" --durations 10 $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bundle: $(STAMP)
	@test -n "$(CONFIG)" || { \
	  echo "error: name a config: make bundle CONFIG=recipes/configs/office/sft_small-qwen3_full.yaml" >&2; exit 2; }
	$(BIN)/python recipes/bundle.py --config $(CONFIG)

results: $(STAMP)
	$(BIN)/python recipes/results_table.py
