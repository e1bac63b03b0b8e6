# `make demo` and `make test` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types benchmark clean

demo: $(VENV)/.installed-cli
	$(BIN)/dbnorm demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

benchmark: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.run

# One environment serves all; its stamp names the extra it was made with.
$(VENV)/.installed-%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) dbnorm-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
