# Everything a newcomer needs is two commands: `make run` and `make test`.
# Each target installs what it needs into .venv, prints what it does, and can be run again.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PYTEST_ARGS ?=
ONLY ?=

.PHONY: help setup run test check bench model lock clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'

$(VENV)/.ok: requirements.lock pyproject.toml
	@echo "==> installing the locked requirements into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(VENV)/.ok ## install the locked requirements

run: $(VENV)/.ok ## run the desk on paper (ARGS="--for 30 --report report.json")
	@echo "==> grekko run $(ARGS)"
	@$(BIN)/grekko run $(ARGS)

test: check ## every static gate, then the whole test suite
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.ok ## format, lint, types and the import contracts
	@echo "==> ruff"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@echo "==> pyright (strict)"
	@$(BIN)/pyright
	@echo "==> import-linter"
	@$(BIN)/lint-imports

bench: $(VENV)/.ok ## measure each budgeted path beside its limit (ONLY=risk for one group)
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

model: ## check the model of the sign-off with Spin (installed when missing)
	@docs/model/run

lock: $(VENV)/.ok ## resolve pyproject.toml into requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
		--all-extras --no-emit-index-url pyproject.toml -o requirements.lock

clean: ## remove what the other targets made
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache benchmarks/out docs/model/work
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
