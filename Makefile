# make quickstart   pre-train, train detectors from 20 labeled pictures, look at what they find
# make test         all tests
# make help         everything else

.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
# `make setup PYTHON=...` remembers an interpreter of your own here; `rm .python` goes back to .venv.
OWN_PYTHON := $(shell cat .python 2>/dev/null)
RUN := $(or $(OWN_PYTHON),$(VENV)/bin/python)
READY := $(if $(OWN_PYTHON),.python,$(VENV)/.ready)
# Gradio is installed into .venv only; an environment of your own gets nothing but this package.
DEMO_READY := $(if $(OWN_PYTHON),.python,$(VENV)/.demo-ready)
DOCS_READY := $(if $(OWN_PYTHON),.python,$(VENV)/.docs-ready)
# One process a core, one file a process; each works with one thread.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile
SOURCES := updetr_d2 tools demo benchmarks docs tests setup.py

.PHONY: help setup setup-demo setup-docs docs quickstart demo figures test test-fast test-all docs-check lock lint format clean

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

$(VENV)/.ready: requirements-lock.txt requirements-detectron2.txt setup.py pyproject.toml tools/setup_environment.py
	@python3 tools/setup_environment.py default $(VENV)
	@touch $@

quickstart: $(READY)  ## pre-train on photographs, train detectors from 20 labeled ones, compare (minutes)
	@$(RUN) tools/quickstart.py

setup-demo: $(DEMO_READY)  ## install what the demo page, its tests and the figures need

$(VENV)/.demo-ready: requirements-demo.txt $(VENV)/.ready
	@$(VENV)/bin/python tools/setup_environment.py demo $(VENV)
	@touch $@

setup-docs: $(DOCS_READY)  ## install what the site of docs/ needs

$(VENV)/.docs-ready: requirements-docs.txt $(VENV)/.ready
	@$(VENV)/bin/python tools/setup_environment.py docs $(VENV)
	@touch $@

docs: $(DOCS_READY)  ## the pages of docs/ as a site in output/site; every link must lead somewhere
	@$(RUN) -m mkdocs build --quiet --strict && echo "output/site/index.html"

demo: $(DEMO_READY)  ## try the quickstart's models in the browser
	@$(RUN) tools/demo_app.py

figures: $(DEMO_READY)  ## draw the pictures of the documentation anew, from the quickstart's models
	@$(RUN) docs/figures/make_figures.py

test: $(READY)  ## all tests but the longest
	$(PYTEST) -m "not long"

test-fast: $(READY)  ## the tests that take seconds
	$(PYTEST) -m "not slow and not long"

test-all: $(READY)  ## every test
	$(PYTEST)

lock: $(READY)  ## write requirements-lock.txt anew, after a change of requirements.txt
	@$(RUN) tools/setup_environment.py lock

docs-check: $(READY)  ## what the documentation names exists
	$(PYTEST) tests/docs/test_docs.py

lint: $(READY)  ## ruff: rules and format; mypy: types
	$(RUN) -m ruff check $(SOURCES)
	$(RUN) -m ruff format --check $(SOURCES)
	$(RUN) -m mypy

format: $(READY)  ## let ruff mend what it can
	$(RUN) -m ruff check --fix $(SOURCES)
	$(RUN) -m ruff format $(SOURCES)

clean:  ## remove .venv and outputs
	rm -rf $(VENV) .python output
