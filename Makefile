# `make demo` and `make test` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-floor test-newest test-optimized test-slow lint types docs dist bench bench-gpu bench-tpu compile-gpu compile-tpu benchmark clean

demo: $(VENV)/.installed-demo
	$(BIN)/dbnorm demo --force

TESTS := -m pytest -n auto --dist loadfile --no-loadscope-reorder
QUICK := $(TESTS) -m "not slow"

# Tests mostly wait for compilation, which takes a third as long where nothing is optimized.
UNOPTIMIZED := XLA_FLAGS="$$XLA_FLAGS --xla_backend_optimization_level=0"

test: $(VENV)/.installed-dev
	$(UNOPTIMIZED) $(BIN)/python $(QUICK)

test-slow: $(VENV)/.installed-dev
	$(UNOPTIMIZED) $(BIN)/python $(TESTS) -m slow

# Of each quick test a case, and of programs as users get them.
test-optimized: $(VENV)/.installed-dev
	$(BIN)/python $(QUICK) --every 1

# The same tests with the oldest releases that are supported, in an environment of their own.
test-floor: $(VENV)-floor/.installed
	$(UNOPTIMIZED) $(VENV)-floor/bin/python $(QUICK)

$(VENV)-floor/.installed: pyproject.toml tests/floor.txt
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/pip install --quiet --requirement tests/floor.txt --editable '.[test]'
	touch $@

# A part of the tests that touches each file of them, with the newest Python found and the newest
# release of everything, in an environment that is made anew each time.
PYTHON_NEWEST ?= $(shell tests/newest_python.sh $(PYTHON))

test-newest: NEWEST := $(PYTHON_NEWEST)
test-newest:
	@test -n "$(NEWEST)" || { echo "expected a Python newer than $(PYTHON), got none: make test-newest PYTHON_NEWEST=..."; exit 1; }
	$(NEWEST) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --editable '.[dev]'
	$(VENV)-newest/bin/mypy
	$(UNOPTIMIZED) HYPOTHESIS_PROFILE=short $(VENV)-newest/bin/python $(QUICK) --every 3

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# Warnings are errors; the site is in ./site.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel and the source archive, in ./dist.
dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --no-isolation

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run

# Need a JAX for the platform in the environment; they say so where it is not.
bench-gpu bench-tpu: bench-%: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.speed.on_my_accelerator --platform $* --json benchmark-results/$*.jsonl

# Compiled for accelerators by their own compilers, on a machine without one; an hour for a TPU.
compile-tpu: $(VENV)/.installed-compilers
	$(BIN)/python -m benchmarks.speed.compile_accelerators --target v5e

compile-gpu: $(VENV)/.installed-compilers
	$(BIN)/python -m benchmarks.speed.compile_accelerators --target h200

benchmark: bench

# One environment serves all; its stamp names the extra it was made with.
$(VENV)/.installed-%: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-floor $(VENV)-newest site dist dbnorm-demo benchmark-results .pytest_cache .mypy_cache .ruff_cache .hypothesis
