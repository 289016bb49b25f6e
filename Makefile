# Two commands do everything on a machine with Python 3.11 and nothing else:
#   make quickstart   fine-tune a retrieval model with hard negatives, about six minutes of compute
#   make test         run the tests
PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 1
MINUTES ?= 10
BIN := $(VENV)/bin

.PHONY: quickstart test fuzz test-gpu lint clean help

help:
	@sed -n '1,3p' Makefile

# The stamp is newer than the files that say what to install, or the environment is brought up to date.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hardneg needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,train,dev]'
	@touch $@

quickstart: $(VENV)/ready
	$(BIN)/python -m hardneg.quickstart --seeds $(SEEDS)

test: $(VENV)/ready
	$(BIN)/python -m pytest -m 'not gpu'

# Damage files of every kind, for as long as MINUTES says.
fuzz: $(VENV)/ready
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

test-gpu:
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/ready
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) runs
