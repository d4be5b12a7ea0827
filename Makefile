# make run: the main job on the embedded model, leaving HTML reports. make test: all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := $(shell $(PYTHON) -c "import hashlib, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(hashlib.sha256((open('constraints.txt').read() + str(p)).encode()).hexdigest()[:16])")
READY := $(VENV)/.ready-$(PINS)

VLLM := .venv-vllm
VLLM_PINS := $(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('constraints-vllm.txt', 'rb').read()).hexdigest()[:16])")
VLLM_READY := $(VLLM)/.ready-$(VLLM_PINS)
# The tests start vLLM on the CPU; its build is for Linux on x86-64.
VLLM_HERE := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(VLLM_READY))

.PHONY: run test lab check bench clean setup vllm
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

vllm: $(VLLM_READY)

# An environment of its own: vLLM's pins and the workbench's need not agree. All pins are there, so
# nothing is resolved; torch's CPU build is on PyTorch's own index.
$(VLLM_READY): VLLM_PIP = $(VLLM)/bin/python -m pip install --no-deps -r constraints-vllm.txt
$(VLLM_READY):
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_PIP) || $(VLLM_PIP) --extra-index-url https://download.pytorch.org/whl/cpu
	touch $@

run: $(READY)
	$(BIN)/workbench run tour

test: $(READY) check $(VLLM_HERE)
	$(BIN)/python -m pytest $(if $(VLLM_HERE),-m 'not gpu and not network') $(TESTS)

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
	rm -rf $(VENV) $(VLLM) build dist outputs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
