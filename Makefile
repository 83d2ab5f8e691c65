# `make help` lists what there is. Everything happens in this folder: .venv/ and gen/ are made, .skyhigh/ holds data.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
LOCK := .venv/.lock
# The build hook writes it last, so that it tells whether the project is installed with the present protos.
STUBS := gen/skyhigh.binpb
# npm writes it last.
SWAGGER_UI := gateway/docs/node_modules/.package-lock.json
PROTOS := $(shell find protos -name '*.proto') protos/build_hook.py
PYTHON ?= python3

.PHONY: help setup packages up down clean test lint breaking protos bench verify lock

## Run

up: setup  ## Start everything, load the demo airline, prove it by three journeys, say where it is; TLS=1 with TLS
	@$(if $(TLS),SKYHIGH_TLS=$(TLS)) $(BIN)/skyhigh up

down:  ## Stop everything; data stay
	@[ ! -x $(BIN)/skyhigh ] || $(BIN)/skyhigh down

clean:  ## Stop everything and forget its data, keys and logs
	@[ ! -x $(BIN)/skyhigh ] || $(BIN)/skyhigh clean

verify: setup  ## Prove on the running stack that what must always hold does
	@$(BIN)/skyhigh verify

bench: setup  ## Measure each figure beside its baseline and print the ratios
	@deploy/local/install_packages.sh cc=gcc /usr/include/stdio.h=libc6-dev /usr/include/nghttp2/nghttp2.h=libnghttp2-dev
	@$(BIN)/python -m bench

## Develop

setup: packages $(STUBS) $(SWAGGER_UI)  ## Install what is missing: system packages, .venv, stubs, the API's page

test: setup  ## Run all tests and print the coverage of lines and branches
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest --numprocesses 2 $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

lint: setup breaking  ## Check style, types, imports, protos and the gateway's configuration
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >.venv/imports.log || { cat .venv/imports.log; exit 1; }
	@$(BIN)/buf lint $(STUBS) --config buf.yaml
	@$(BIN)/python -m gateway.render --check
	@echo "lint: clean"

protos: packages $(LOCK)  ## Compile the protos into typed stubs, changed or not
	@$(BIN)/python protos/build_hook.py

lock:  ## Resolve requirements.lock anew from pyproject.toml (needs uv)
	@echo '# Resolved from pyproject.toml by `make lock`; installed by `make setup` with --require-hashes.' >.lock
	@uv pip compile --quiet --universal --python-version 3.11 --extra local --extra dev --generate-hashes \
		--no-emit-index-url --no-annotate --no-header pyproject.toml >>.lock
	@mv .lock requirements.lock

help:  ## Print this
	@awk 'BEGIN { FS = ":.*##" } \
		/^## / { printf "%s%s\n", (n++ ? "\n" : ""), substr($$0, 4) } \
		/^[a-z]+:.*##/ { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

packages:
	@PYTHON=$(PYTHON) deploy/local/install_packages.sh

# The folder first, the stamp last: an interrupted installation is done again.
$(LOCK): requirements.lock | packages
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo "Installing Python packages into .venv …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@touch $@

$(STUBS): $(LOCK) pyproject.toml $(PROTOS)
	@echo "Compiling protos and installing the project …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Nothing that comes with it may run here: one of its packages would only tell its maker about this machine.
$(SWAGGER_UI): gateway/docs/package-lock.json | packages
	@deploy/local/install_packages.sh npm=npm
	@echo "Installing Swagger UI …"
	@npm ci --prefix gateway/docs --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# Callers of the API as it was last agreed on must not break: compared with main, or else with the last commit whose
# protos differ from these.
breaking: setup
	@for reference in origin/main HEAD HEAD~1; do \
		git rev-parse --quiet --verify $$reference^{commit} >/dev/null 2>&1 || continue; \
		! git diff --quiet $$reference -- protos || continue; \
		git cat-file -e $$reference:protos 2>/dev/null || continue; \
		before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; \
		git archive $$reference protos | tar -x -C $$before; \
		cp protos/build_hook.py $$before/protos/; \
		$(BIN)/python $$before/protos/build_hook.py; \
		$(BIN)/buf breaking $(STUBS) --config buf.yaml --against $$before/gen/skyhigh.binpb; \
		break; \
	done
