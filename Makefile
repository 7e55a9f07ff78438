# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast lint types format bench bench-quick bench-peers clean

# torch and torchvision first and by plain pip, as a pair: their builds must match.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed   ## the main job on handwritten digits, with the embedded backbone
	$(BIN)/topwork demo

# A process per core, each computing on one thread: threads of several processes would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: $(VENV)/.installed   ## every test
	$(PYTEST)

test-fast: $(VENV)/.installed   ## without the slow ones
	$(PYTEST) -m 'not slow'

lint: $(VENV)/.installed   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One that misses its bound is named at the end, and hides no other.
BENCHES := $(filter-out bench/common.py,$(wildcard bench/*.py))

bench: $(VENV)/.installed   ## every bench at its real size (needs the labelled sets beside the project)
	missed=; for file in $(BENCHES); do $(BIN)/python $$file || missed="$$missed $$file"; done; \
	  test -z "$$missed" || { echo "failed:$$missed"; exit 1; }

bench-quick: $(VENV)/.installed
	missed=; for file in $(BENCHES); do $(BIN)/python $$file --quick || missed="$$missed $$file"; done; \
	  test -z "$$missed" || { echo "failed:$$missed"; exit 1; }

bench-peers: $(VENV)/.installed   ## topwork beside others, each in its own environment: hours, some 12 GB
	$(BIN)/python bench/peers/run.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info topwork-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
