# make run: the main job on the embedded model, leaving HTML reports. make test: all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := $(shell $(PYTHON) -c "import hashlib, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(hashlib.sha256((open('constraints.txt').read() + str(p)).encode()).hexdigest()[:16])")
READY := $(VENV)/.ready-$(PINS)

.PHONY: run test lab check bench clean setup
.DEFAULT_GOAL := run

setup: $(READY)

# Made once; made anew only when the pins (constraints.txt, pyproject.toml) change.
$(READY):
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt torch
	CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-$$(getconf _NPROCESSORS_ONLN)} \
	  $(BIN)/python -m pip install -c constraints.txt -e '.[all]'
	touch $@

run: $(READY)
	$(BIN)/workbench run tour

test: $(READY) check
	$(BIN)/python -m pytest $(TESTS)

lab: $(READY)
	$(BIN)/jupyter lab notebooks

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/streaming.py

clean:
	rm -rf $(VENV) build dist outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
