# `make demo` and `make test` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types bench bench-gpu bench-tpu benchmark clean

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

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run

# Need a JAX for the platform in the environment; they say so where it is not.
bench-gpu bench-tpu: bench-%: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.accelerator --platform $*

benchmark: bench

# One environment serves all; its stamp names the extra it was made with.
$(VENV)/.installed-%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) dbnorm-demo benchmark-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
