# `make demo` trains and evaluates the embedded model; `make test` runs the tests. Each makes `.venv` by itself.
PYTHON ?= python3
BIN = .venv/bin
# 2.13.0 is the release the tests run on; where none is installed, pip takes the build that fits the machine.
TORCH ?= torch==2.13.0

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test slow lint types clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/lacos-st train --overwrite
	$(BIN)/lacos-st evaluate bloom-mini ./lacos-bloom --tasks sts-sample
	$(BIN)/python examples/search.py ./lacos-bloom

test: .venv/ready
	$(BIN)/python -m pytest

slow: .venv/ready
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/ready
	$(BIN)/mypy

clean:
	rm -rf .venv lacos-bloom lacos-bloom.run build dist *.egg-info
