# The two commands of this project. Both do all the set-up: a virtual environment in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: help demo test clean

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: $(INSTALLED)  ## Export, quantize, check and time a trained model; writes runs/demo/report.html
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: $(INSTALLED)  ## Lint, type check and run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

clean:  ## Remove the virtual environment and all runs
	rm -rf $(VENV) runs

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "mf-deploy needs Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "Installing mf-deploy and its tools in $(VENV), once; this takes minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
