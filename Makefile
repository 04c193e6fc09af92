# `make help` lists the targets. Everything is installed into .venv, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SCAN ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | awk -F '\t' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## phantoms, training, evaluation, a segmented scan and demo/report.html; SCAN=ct.nii.gz for your own
	@$(BIN)/liverseg demo $(if $(SCAN),--scan "$(SCAN)")

test: $(VENV)/.test ## all tests with coverage
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n logical --maxprocesses 8 --dist loadfile $(ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

lint: $(VENV)/.test ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.test ## put the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove .venv and everything that the targets write
	rm -rf $(VENV) demo dist build *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.python:
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python setup.cfg pyproject.toml constraints.txt
	@echo "Installing liverseg and what it needs (a few minutes)"
	@$(PIP) install -q -c constraints.txt -e ".[dicom]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing what the tests need"
	@$(PIP) install -q -c constraints.txt -e ".[test]"
	@touch $@
