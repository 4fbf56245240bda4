# One command per wish; each sets up what it needs in .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := -m pip install -qq --disable-pip-version-check --no-input
INSTALL := PIP_ROOT_USER_ACTION=ignore $(BIN)/python $(PIP) --constraint constraints.txt
SOURCES := core plugins tests benchmarks docs examples .ci
BENCHMARKS := startup execution router bfts durability supervision recipes_gain
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint types bench soak docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/run.stamp ## run the example experiment search on the built-in recipes (ARGS='--seed 1' adds flags)
	@$(BIN)/corerun --plugin bfts run --model recipes::default $(ARGS)

test: .venv/dev.stamp .gateway/stamp ## run the tests (ARGS='-k journal' adds flags)
	@$(BIN)/pytest -m 'not soak' --numprocesses auto --dist loadfile $(ARGS)

lint: .venv/dev.stamp ## check style and import rules
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/lint-imports

types: .venv/dev.stamp ## check types
	@$(BIN)/mypy

bench: .venv/dev.stamp ## measure the figures that the documentation gives
	@for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

soak: .venv/dev.stamp ## run the slow tests
	@$(BIN)/pytest -m soak $(ARGS)

docs: .venv/dev.stamp ## write docs/cli.md again
	@$(BIN)/python docs/cli.py

clean: ## remove the environment, caches and built packages; runs stay
	@rm -rf .venv .gateway build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "corerun needs Python 3.11 or newer; none was found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "corerun needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V): make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/run.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@$(INSTALL) --editable '.[experiments]'
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	@$(INSTALL) --editable '.[experiments,anthropic,train,dev]'
	@touch $@

# The litellm proxy pins other versions of what corerun uses, so it lives apart.
.gateway/stamp: tests/gateway-constraints.txt | .venv/bin/python
	@$(BIN)/python -m venv .gateway
	@PIP_ROOT_USER_ACTION=ignore .gateway/bin/python $(PIP) --constraint tests/gateway-constraints.txt 'litellm[proxy]'
	@touch $@
