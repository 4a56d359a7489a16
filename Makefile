# make quickstart   pre-train a small model and look at what it learned
# make test         all tests
# make help         everything else

.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
# `make setup PYTHON=...` remembers an interpreter of your own here; `rm .python` goes back to .venv.
OWN_PYTHON := $(shell cat .python 2>/dev/null)
RUN := $(or $(OWN_PYTHON),$(VENV)/bin/python)
READY := $(if $(OWN_PYTHON),.python,$(VENV)/.ready)
SOURCES := updetr_d2 tools tests setup.py

.PHONY: help setup quickstart test test-fast test-all lint format clean

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

ifdef PYTHON
setup:  ## make .venv with the pinned packages; PYTHON=... uses an environment of your own instead
	@$(PYTHON) tools/setup_environment.py own
	@command -v $(PYTHON) > .python
	@echo "make will use $$(cat .python); 'rm .python' goes back to .venv."
else
setup: $(READY)  ## make .venv with the pinned packages; PYTHON=... uses an environment of your own instead
endif

$(VENV)/.ready: requirements.txt requirements-detectron2.txt setup.py pyproject.toml tools/setup_environment.py
	@python3 tools/setup_environment.py default $(VENV)
	@touch $@

quickstart: $(READY)  ## pre-train a small UP-DETR on generated scenes, fine-tune it, compare (minutes)
	@$(RUN) tools/quickstart.py

test: $(READY)  ## all tests but the longest
	$(RUN) -m pytest -m "not long"

test-fast: $(READY)  ## the tests that take seconds
	$(RUN) -m pytest -m "not slow and not long"

test-all: $(READY)  ## every test
	$(RUN) -m pytest

lint: $(READY)  ## ruff: rules and format
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)

format: $(READY)  ## let ruff mend what it can
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

clean:  ## remove .venv and outputs
	rm -rf $(VENV) .python output
