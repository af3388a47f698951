# Afterclick. `make` lists the targets.
#
#   DATASET   a folder or file of reviews for `make demo` and for the tests on real data
#   PYTHON    the Python (3.11 or newer) to build the environment with; default: the first one found

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
# test processes, with one thread each
WORKERS ?= 2
BIN := $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25
STAMP := $(VENV)/.setup-done
CODE := afterclick ingest streaming training serving ui infra tests notebooks/*.py
# tried in this order: 3.11 is what CI runs
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3

.PHONY: help setup demo down status doctor test test-long lint audit format docs clean

help: ## list the targets
	@echo "Afterclick: the list changes after the click."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  DATASET=<folder or file> make demo   runs it on your reviews; PYTHON=python3.12 make setup selects the Python"

setup: $(STAMP) ## create the environment and download the jars, once (2 minutes, 6 GB)

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "no Python 3.11 or newer found: install one, or set PYTHON=..." >&2; exit 1; fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "==> $(VENV) with $$($$found --version)"; \
	  $$found -m venv $(VENV) || { rm -rf $(VENV); echo "could not create a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }; \
	fi; \
	$(BIN)/python -c 'import uv' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "==> packages"
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e ".[all,dev]"
	@echo "==> jars"
	@$(BIN)/afterclick jars
	@echo "==> bytecode and machine code"
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/afterclick compile
	@touch $@

demo: setup ## run the whole stack and replay the reviews; Ctrl-C stops it, the next demo continues
	@exec $(BIN)/afterclick up --replay

down: setup ## stop the stack of another shell
	@$(BIN)/afterclick down

status: setup ## show the processes and the progress of the stack
	@$(BIN)/afterclick status

doctor: setup ## check this machine and show fixes
	@$(BIN)/afterclick doctor

test: setup ## run the tests against real services (DATASET adds those on real data)
	@$(PYTEST) -m "not long"

test-long: setup ## run the long cluster, fault and soak tests
	@$(PYTEST) -m long

lint: setup ## run ruff, mypy --strict and the import contracts
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: setup ## check the packages for known vulnerabilities and for licences (needs the internet)
	@$(BIN)/uv tool run --from pip-licenses==5.5.5 pip-licenses --python $(BIN)/python --format=csv >/dev/null
	@$(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --strict --no-deps --disable-pip -r constraints.txt

format: setup ## format the code
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

docs: setup ## write the generated pages: settings, commands, event schema
	@$(BIN)/afterclick docs

clean: ## delete the data of the demo (Kafka, Valkey, models)
	@rm -rf .afterclick
