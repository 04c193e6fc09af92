# `make help` lists the targets. Everything is installed into .venv, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Most modules are never imported: compiling all takes a third of the time.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist loadfile
SCAN ?=
STUDIES ?=

.DEFAULT_GOAL := help
.PHONY: help demo label test test-slow lint format docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{printf "make %-9s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## the liver of a real CT, phantoms, training, evaluation, a segmented scan and demo/report.html; SCAN=ct.nii.gz for your own
	@$(BIN)/liverseg demo $(if $(SCAN),--scan "$(SCAN)")

label: $(VENV)/.label ## a server to annotate with, with trained weights and a real CT; STUDIES=folder for your own scans
	@$(BIN)/liverseg serve $(if $(STUDIES),--studies "$(STUDIES)")

test: $(VENV)/.test ## the tests with coverage, without the slow ones
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report

test-slow: $(VENV)/.test ## the tests that train, start many processes or take long for another reason
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow $(ARGS)

lint: $(VENV)/.test ## style, types, and whether the configs are as their sources say
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/liverseg zoo render --check

format: $(VENV)/.test ## put the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.docs ## the documentation as a site in site/, with pages of the Python API
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove .venv and everything that the targets write
	rm -rf $(VENV) demo dist build site *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.python:
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python setup.cfg pyproject.toml constraints.txt
	@echo "Installing liverseg and what it needs (a few minutes)"
	@$(INSTALL) -e ".[dicom,weights]"
	@touch $@

# sam2, which MONAI Label asks for, builds with the torch that is there; on its own it would download another.
$(VENV)/.label: $(VENV)/.demo
	@echo "Installing MONAI Label"
	@$(INSTALL) setuptools wheel
	@SAM2_BUILD_CUDA=0 $(INSTALL) --no-build-isolation -e ".[label]"
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "Installing what the documentation needs"
	@$(INSTALL) -e ".[docs]"
	@touch $@

$(VENV)/.test: $(VENV)/.label
	@echo "Installing what the tests need"
	@$(INSTALL) -e ".[test]"
	@$(BIN)/liverseg zoo fetch unet3d_liver
	@$(BIN)/python -c "from pathlib import Path; from liverseg.workbench.zoo.fetch import fetch_ct; fetch_ct(Path('$(VENV)/ct'))"
	@touch $@
