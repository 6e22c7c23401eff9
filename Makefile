# `make demo` and `make test` are all that a newcomer needs; `make` alone lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-newer lint docs format setup clean

VENV_PYTHON := .venv/bin/python

# Software or hardware EGL: MuJoCo's own default needs a display.
export MUJOCO_GL ?= egl
export PYOPENGL_PLATFORM ?= $(MUJOCO_GL)
export TF_CPP_MIN_LOG_LEVEL ?= 2
# A start takes twice as long where Python may not keep what it compiles, and tests start many processes.
unexport PYTHONDONTWRITEBYTECODE
# Tests of one file share what they compile, so a file stays in one process.
PARALLEL ?= -n 2 --dist loadfile
# Which Python makes .venv (3.11, 3.12 or 3.13): make PYTHON=/path/to/python3.11 demo
export PYTHON ?=

# make demo ROBOT=so101 has a folder of its own.
ROBOT ?= libero
QUICKSTART := $(if $(filter-out libero,$(ROBOT)),--robot=$(ROBOT) --workdir=outputs/demo_$(ROBOT) --demonstrations=50 --minutes=30)

help:
	@echo "make demo    set up, then record, train, convert and evaluate a small X-VLA (python -m scripts.quickstart)"
	@echo "             ROBOT=so101: the same on an arm that is driven by its joints"
	@echo "make test    set up, then ruff, pyright, the documentation and every test"
	@echo "make test-newer  a quick part of the tests on the newest Python here, with the JAX of that one"
	@echo "make lint    ruff and pyright only"
	@echo "make docs    build the documentation site in site/; dead links and missing references fail"
	@echo "make format  let ruff fix and format"
	@echo "make setup   only make .venv and install into it"
	@echo "make clean   remove .venv, .venv-beam, .venv-newer and caches; outputs/ stays"

demo: setup
	@bash scripts/setup.sh gl
	$(VENV_PYTHON) -m scripts.quickstart $(QUICKSTART)

# Without headless GL the simulator's tests skip, without the compiler for TPUs the planner's, without
# a Chromium those that open pages and without .venv-beam those of Apache Beam, with a reason; in CI
# that is a failure.
test: setup lint docs
	@bash scripts/setup.sh gl || [ "$$CI" != true ]
	@bash scripts/setup.sh tpu || [ "$$CI" != true ]
	@bash scripts/setup.sh browser || [ "$$CI" != true ]
	@bash scripts/setup.sh beam || [ "$$CI" != true ]
	$(VENV_PYTHON) -m pytest $(PARALLEL)
	$(VENV_PYTHON) -m pytest -m slow $(PARALLEL)

# What a newer JAX breaks first: golden numbers, names that it keeps to itself, the files of a run, pins.
QUICK_TESTS := tests/xvla_jax/test_golden_values.py tests/xvla_jax/training/test_multihost.py \
  tests/xvla_jax/training/test_provenance.py tests/test_packaging.py

test-newer: setup
	@bash scripts/setup.sh newer
	.venv-newer/bin/python -m pytest -x $(PARALLEL) $(QUICK_TESTS)

lint: setup
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m pyright

# Strict: a dead link, anchor or reference fails. The variable silences an advertisement.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build

format: setup
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

setup: .venv/.installed
	@bash scripts/setup.sh same

.venv/.installed: setup.py requirements/constraints.txt scripts/setup.sh
	@bash scripts/setup.sh venv
	@touch $@

clean:
	rm -rf .venv .venv-beam .venv-newer build dist site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
