# RocLab. `make demo` and `make test` each work alone on a machine with python3 (3.10 or newer), venv and make.
PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := $(BIN)/roclab pull smollm2-135m
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo demo-vision demo-lm project test test-slow lint bench clean
help:
	@echo "make demo       both parts on real data and weights: images classified, a question answered"
	@echo "make demo-lm, demo-vision   one of them"
	@echo "make project    the whole course hand-in on solar cells, to a zip, in half an hour"
	@echo "make test       the tests, under ten minutes on two cores"
	@echo "make test-slow  the long checks"
	@echo "make lint       style, types, layers and the rules of the house"
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

.venv/.vision: pyproject.toml | .venv/.run
	@echo "installing the vision part into .venv"
	$(BIN)/python -m pip install --quiet -e '.[vision]'
	@touch $@

.venv/.project: pyproject.toml | .venv/.run
	@echo "installing what the report and the tokenizer lab need into .venv"
	$(BIN)/python -m pip install --quiet -e '.[report,lab]'
	@touch $@

demo: demo-vision demo-lm

# The same command goes on after an interruption.
project: .venv/.project
	$(BIN)/roclab project --student-id 31842067 --name "Example Student" --data elpv --budget 25m --out runs/project

# Solar cells, sound or defective: EfficientNet-Lite0 with its backbone frozen. A cut run goes on, a finished one stays.
demo-vision: .venv/.vision
	@if [ -f runs/demo-elpv/config.json ]; then $(BIN)/roclab vision train --resume runs/demo-elpv; else \
	  $(BIN)/roclab vision train --data elpv --model efficientnet_lite0 --strategy features --out runs/demo-elpv; fi
	$(BIN)/roclab vision evaluate runs/demo-elpv --split test
	@echo "pictures:" runs/demo-elpv/figures/*.png

demo-lm: .venv/.run
	$(BIN)/roclab lm generate --model smollm2-135m --chat --max-new-tokens 80 \
	  --prompt "What is gravity? Explain in two sentences."

# Three workers, as tests also wait for processes of theirs; a file's tests together: they share what is slow to make.
test: .venv/.dev
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest tests/test_house.py

bench: .venv/.dev
	$(BIN)/python bench/lm_load.py
	$(BIN)/python bench/vision.py

clean:
	rm -rf .venv build dist *.egg-info
