# Two commands: `make quickstart` grows and shows a first zoo, `make test` runs every test. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART ?= zoos/quickstart

.PHONY: install quickstart test test-slow lint docs bench clean

install: $(VENV)/.installed

# uv resolves and links the environment in seconds; where it is missing, pip brings it into the environment first.
# Compiling to bytecode takes half a minute once; without it every new process compiles torch and Ray again where Python
# may not write beside them (PYTHONDONTWRITEBYTECODE, read-only images): 9 s instead of 3 s for each.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "zoogen needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV) (about 6 GB; torch and torchvision come together from the registry)"
	@if [ -x $(BIN)/python ]; then :; elif command -v uv >/dev/null 2>&1; then uv venv --quiet --python $(PYTHON) $(VENV); \
	  else $(PYTHON) -m venv $(VENV); fi
	@if command -v uv >/dev/null 2>&1; then UV=uv; else $(BIN)/python -m pip install --quiet uv && UV=$(BIN)/uv; fi; \
	  $$UV pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

quickstart: install
	$(BIN)/zoogen build blueprints/quickstart.yaml --out $(QUICKSTART)
	$(BIN)/zoogen info $(QUICKSTART) --picture $(QUICKSTART)/accuracy.png

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow --override-ini addopts="-q --strict-markers --import-mode=importlib"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: install
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) docs/_build docs/reference
