# Afterclick. `make` alone says what can be made.
#
#   DATASET   a folder or file of reviews for `make demo` and for the tests that want real data
#   PYTHON    the Python (3.11 or newer) to build the environment with; by default the first found

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
# test processes; each computes with one thread, as there are not more cores than they are
WORKERS ?= 2
BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25
STAMP := $(VENV)/.setup-done
CODE := afterclick ingest streaming training serving ui infra tests notebooks/*.py
# tried in this order: 3.11 is what CI runs
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3

.PHONY: help setup demo down status doctor test test-long lint format docs clean

help: ## what can be made
	@echo "Afterclick: the list changes after the click."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  DATASET=<folder or file> make demo   runs it on your reviews; PYTHON=python3.12 make setup picks the Python"

setup: $(STAMP) ## the environment and the jars, once (2 minutes, 6 GB)

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "no Python 3.11 or newer found: install one, or name it with PYTHON=..." >&2; exit 1; fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "==> $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); echo "could not make a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }; \
	fi; \
	$(BIN)/python -c 'import uv' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "==> packages"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e ".[all,dev]"
	@echo "==> jars"
	@$(BIN)/afterclick jars
	@touch $@

demo: setup ## the whole stack, then a replay of the reviews; Ctrl-C stops it, again goes on
	@exec $(BIN)/afterclick up --replay

down: setup ## stop a stack that runs elsewhere
	@$(BIN)/afterclick down

status: setup ## what runs, how far it has got
	@$(BIN)/afterclick status

doctor: setup ## what is missing on this machine, and how to mend it
	@$(BIN)/afterclick doctor

test: setup ## the tests, against real services on free ports (DATASET adds those on real data)
	@$(PYTEST) -m "not long"

test-long: setup ## the long cluster, fault and soak tests
	@$(PYTEST) -m long

lint: setup ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## rewrite the code in house style
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

docs: setup ## the generated pages: settings, commands, the events' JSON Schema
	@$(BIN)/afterclick docs

clean: ## forget everything the demo kept (Kafka, Valkey, models)
	@rm -rf .afterclick
