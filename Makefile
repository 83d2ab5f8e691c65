# `make help` lists what there is. Everything happens in this folder: .venv/ and gen/ are made, .skyhigh/ holds data.

MAKEFLAGS += --no-builtin-rules --no-print-directory
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
# The build hook of the project writes it last.
STUBS := gen/skyhigh.binpb
# The Python that .venv has stays, unless PYTHON names another.
ANY_PYTHON := $(or $(PYTHON),$(shell [ ! -x $(BIN)/python ] || echo $(BIN)/python),python3)
PROCESSES ?= 2
CLOCK := $(if $(DAYS),tests/moved_clock/run $(DAYS))
ORDER := $(if $(SEED),$(if $(filter none,$(SEED)),--randomly-dont-reorganize,--randomly-seed=$(SEED)))

.PHONY: help install setup packages up down clean test chaos lint breaking protos bench verify lock

## Run

up: install  ## Start everything, load the demo airline, prove it by three journeys, say where it is; TLS=1 with TLS
	@$(if $(TLS),SKYHIGH_TLS=$(TLS)) $(BIN)/skyhigh up

down:  ## Stop everything; data stay
	@[ ! -x $(BIN)/skyhigh ] || $(BIN)/skyhigh down

clean:  ## Stop everything and forget its data, keys and logs
	@[ ! -x $(BIN)/skyhigh ] || $(BIN)/skyhigh clean

verify: install  ## Prove on the running stack that what must always hold does
	@$(BIN)/skyhigh verify

bench: install  ## Measure each figure beside its baseline and print the ratios
	@deploy/local/install_packages.sh cc=gcc /usr/include/stdio.h=libc6-dev /usr/include/nghttp2/nghttp2.h=libnghttp2-dev
	@$(BIN)/python -m bench

## Develop

setup: packages  ## Install what is missing for developing: system packages, .venv, stubs, the API's page
	@$(if $(PYTHON),PYTHON="$(PYTHON)") "$(ANY_PYTHON)" requirements/install.py --dev

test: setup  ## Run all tests and print coverage and the slowest; ARGS=tests/seat runs only those, without coverage
ifdef ARGS
	@$(CLOCK) $(BIN)/python -m pytest --numprocesses $(PROCESSES) $(ORDER) $(ARGS)
else
	@$(BIN)/coverage erase
	@$(CLOCK) $(BIN)/coverage run -m pytest --numprocesses $(PROCESSES) --durations=30 $(ORDER)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
endif

chaos: setup  ## Play an airline with faults on a stack of its own, check what its clients saw; SEED=… MINUTES=… FAULTS=none
	@$(BIN)/python -m tests.system $(if $(SEED),--seed $(SEED)) --minutes $(or $(MINUTES),1) --faults $(or $(FAULTS),all) $(ARGS)

lint: setup breaking  ## Check style, types, imports, protos and the gateway's configuration
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >.venv/imports.log || { cat .venv/imports.log; exit 1; }
	@$(BIN)/buf lint $(STUBS) --config buf.yaml
	@$(BIN)/python -m gateway.render --check
	@echo "lint: clean"

protos: install  ## Compile the protos into typed stubs, changed or not
	@$(BIN)/python protos/build_hook.py

lock: packages  ## Write requirements/*.lock from pyproject.toml; UPGRADE=1 takes the newest releases
	@"$(ANY_PYTHON)" requirements/lock.py $(if $(UPGRADE),--upgrade)

help:  ## Print this
	@awk 'BEGIN { FS = ":.*##" } \
		/^## / { printf "%s%s\n", (n++ ? "\n" : ""), substr($$0, 4) } \
		/^[a-z]+:.*##/ { printf "  make %-8s %s\n", $$1, $$2 } \
		/^#- / { printf "  %s\n", substr($$0, 4) }' $(MAKEFILE_LIST)

packages:
	@PYTHON="$(ANY_PYTHON)" deploy/local/install_packages.sh $(if $(wildcard gateway/docs/node_modules),,npm=npm)

# What `make up` needs: without the tools of developers.
install: packages
	@$(if $(PYTHON),PYTHON="$(PYTHON)") "$(ANY_PYTHON)" requirements/install.py

# Callers of the API as it was last agreed on must not break: compared with main, or else with the last commit whose
# protos differ from these. A copy without .git has none to compare with.
breaking: setup
	@for reference in origin/main HEAD HEAD~1; do \
		git rev-parse --quiet --verify $$reference^{commit} >/dev/null 2>&1 || continue; \
		! git diff --quiet $$reference -- protos || continue; \
		git cat-file -e $$reference:protos 2>/dev/null || continue; \
		before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; \
		git archive $$reference protos | tar -x -C "$$before"; \
		cp protos/build_hook.py "$$before/protos/"; \
		$(BIN)/python "$$before/protos/build_hook.py"; \
		$(BIN)/buf breaking $(STUBS) --config buf.yaml --against "$$before/gen/skyhigh.binpb"; \
		break; \
	done

## Variables
#- PYTHON=python3.12     the Python for .venv; another one than .venv has makes it again
#- TLS=1                 up: with TLS at the gateway and mutual TLS between the services
#- SKYHIGH_PORT_BASE=N   up: move all ports, for a second stack; with SKYHIGH_HOME=FOLDER for its data
#- ARGS="tests/seat -x"  test: what pytest runs, and its options
#- PROCESSES=2           test: in how many processes
#- SEED=N                test: the order of the run that printed --randomly-seed=N; SEED=none: as written
#- COVERAGE=all          test: measure coverage with all tests, which takes longer; else with every third
#- DAYS=40               test: with the clock of every process moved ahead by so many days
