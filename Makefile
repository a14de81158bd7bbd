# The two commands of the README are `make demo` and `make test`; both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo serve test lint format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/headgate demo

serve: setup
	$(BIN)/headgate serve

test: setup lint
	$(BIN)/python -m pytest

# LiteLLM is the other side of the control plane's benchmark; docs/benchmarks.md says how to install it apart.
bench: setup
	$(BIN)/python benchmarks/scheduler_core.py
	$(BIN)/python benchmarks/admission_core.py
	$(BIN)/python -m benchmarks.control_plane $(if $(LITELLM),--litellm $(LITELLM))
	$(BIN)/python benchmarks/engine_cpu.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist
