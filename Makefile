# Two commands: `make demo` and `make test`. Each sets everything up first.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all lint bench clean

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tests,lint,docs]'
	touch $@

demo: .venv/.ready  ## the main job: collision, recall and text, with a report
	$(BIN)/bayesmem demo

test: .venv/.ready  ## all tests that take seconds
	$(PYTEST) -n 2 -m 'not slow'

test-all: .venv/.ready  ## the long ones too
	$(PYTEST) -n 2

lint: .venv/.ready  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.ready  ## times the ops against their peers on this machine, into runs/bench
	$(BIN)/bayesmem bench

clean:
	rm -rf .venv runs
