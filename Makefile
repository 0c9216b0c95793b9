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

# What tests talk to beside Python packages: a browser, a time series database, an EVM node and published contracts.
APT_TOOLS := chromium fonts-liberation victoria-metrics
NPM_TOOLS := @foundry-rs/anvil@1.7.1 @uniswap/v2-core@1.0.1 @uniswap/v2-periphery@1.1.0-beta.0 @uniswap/v3-core@1.0.1 \
	@uniswap/v3-periphery@1.4.4 @modelcontextprotocol/ext-apps@2.0.4

.PHONY: help setup tools run test soak check bench model lock clean

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

$(VENV)/.tools: $(VENV)/.ok Makefile
	@echo "==> installing what the tests talk to: $(APT_TOOLS)"
	@dpkg -s $(APT_TOOLS) >/dev/null 2>&1 || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(APT_TOOLS) >/dev/null; }
	@echo "==> and from npm: $(NPM_TOOLS)"
	@npm install --prefix $(VENV)/node --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error $(NPM_TOOLS)
	@touch $@

tools: $(VENV)/.tools ## install what the tests talk to (browser, time series database, EVM node)

run: $(VENV)/.ok ## run the desk on paper (ARGS="--for 30 --report report.json")
	@echo "==> grekko run $(ARGS)"
	@$(BIN)/grekko run $(ARGS)

test: check $(VENV)/.tools ## every static gate, then the whole test suite
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: $(VENV)/.tools ## long randomized and sustained-load runs
	@$(BIN)/python -m pytest -m soak --timeout 900 $(PYTEST_ARGS)

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
