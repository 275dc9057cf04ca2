# `make demo` and `make test` do all the set-up by themselves: a virtual environment in .venv, the package and its
# dependencies in it. The second time they find it there.
#
#   make test PYTHON=python3.12          another interpreter (3.10 or newer), when .venv does not exist yet
#   make test PIP_FLAGS="--no-index …"   extra options for pip install
#   make test ARGS="tests/test_images.py -x"   extra arguments for the command of the target
#   make test-versions VERSIONS=lowest PYTHON=python3.10   (the lowest numpy has no files for Python 3.12 or newer)

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
TEACHER ?=
VERSIONS ?= lowest torch==2.14.1 newest
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-versions lint style bench train build clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: $(READY) ## generate with the bundled models: unguided, guided, best of N; table and picture in out/demo
	$(BIN)/iqguide demo --out out/demo $(ARGS)

test: $(READY) ## the test suite (IQGUIDE_DATA=folder adds the tests on photographs)
	$(BIN)/pytest $(ARGS)

test-slow: $(READY) ## the tests that take long or need real weights
	$(BIN)/pytest -m slow $(ARGS)

test-versions: ## the test suite with the lowest, a fixed and the newest versions, each in a fresh environment (7 GB, removed)
	@mkdir -p build; failed=; for versions in $(VERSIONS); do \
		echo "Versions: $$versions"; \
		case $$versions in lowest) sed 's/>=/==/' requirements.txt ;; newest) ;; *) echo $$versions ;; esac > build/constraints.txt; \
		rm -rf build/fresh; \
		$(MAKE) setup VENV=build/fresh PIP_FLAGS="$(PIP_FLAGS) --constraint build/constraints.txt" && \
			build/fresh/bin/python -m pip freeze --all && $(MAKE) test VENV=build/fresh || failed="$$failed $$versions"; \
		rm -rf build/fresh; \
	done; test -z "$$failed" || { echo "The suite fails with:$$failed" >&2; exit 1; }

lint: $(READY) ## ruff check and format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(READY) ## ruff check and format, mending what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY) ## only the set-up

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "iqguide needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
		"Choose another one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }

$(READY): pyproject.toml | $(BIN)/python
	@echo "Installing iqguide and its dependencies into $(VENV) (the first time this takes minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable ".[dev]"
	@touch $@

bench: $(READY) ## the measurements of benchmarks/README.md, printed; ARGS=--publish writes them there (IQGUIDE_DATA: more)
	$(BIN)/python benchmarks/demo_quality.py --out runs/demo_quality $(ARGS)
	$(if $(IQGUIDE_DATA),$(BIN)/python benchmarks/tiny_quality.py --data "$(IQGUIDE_DATA)" $(filter --publish,$(ARGS)))

train: $(READY) ## train `tiny`, with the bundled bpclip-mini's second opinion (IQGUIDE_DATA=folder, TEACHER=SqueezeNet's state dict) into runs/tiny
	@test -n "$(IQGUIDE_DATA)" && test -f "$(TEACHER)" || { echo "Name the photographs and the teacher: make train IQGUIDE_DATA=folder" \
		"TEACHER=squeezenet.pt (docs/training.md says what they are)" >&2; exit 1; }
	$(BIN)/accelerate launch -m iqguide.training.distill --data "$(IQGUIDE_DATA)" --teacher "$(TEACHER)" --steps 3600 \
		--out runs/distilled $(ARGS)
	$(BIN)/accelerate launch -m iqguide.training.fit_tiny_head --data "$(IQGUIDE_DATA)" --init runs/distilled/tiny.safetensors \
		--second-opinion models/assets/bpclip-mini.safetensors --out runs/tiny

build: $(READY) ## wheel and source archive in dist/
	$(BIN)/python -m build

clean: ## remove what the other targets made, .venv too
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .ruff_cache
