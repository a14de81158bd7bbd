# The two commands of the README are `make demo` and `make test`; both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo serve test lint format bench compose-secrets compose-secrets-ha compose-rehearsal image-size clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/headgate demo

serve: setup
	$(BIN)/headgate serve

# What starts whole stacks has both cores for itself; all else shares them.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not stack"
	$(BIN)/python -m pytest -m stack

# LiteLLM is the other side of the control plane's benchmark; docs/benchmarks.md says how to install it apart.
bench: setup
	$(BIN)/python benchmarks/scheduler_core.py
	$(BIN)/python benchmarks/admission_core.py
	$(BIN)/python -m benchmarks.control_plane $(if $(LITELLM),--litellm $(LITELLM))
	$(BIN)/python benchmarks/engine_cpu.py

# The containers run as the user who owns the secrets: .env tells Compose who that is. As root, an ordinary user gets them.
COMPOSE_UID := $(if $(filter 0,$(shell id -u)),10001,$(shell id -u))
COMPOSE_GID := $(if $(filter 0,$(shell id -g)),10001,$(shell id -g))

compose-secrets: setup .env
	chmod 700 deploy/secrets
	$(BIN)/headgate secrets init --dir deploy/secrets
	test "$$(id -u)" != 0 || chown -R $(COMPOSE_UID):$(COMPOSE_GID) deploy/secrets

# The store of a single NATS server cannot become that of a cluster: what it keeps would be lost. See docs/operations.md.
compose-secrets-ha: setup .env
	@test ! -e deploy/secrets/nats.conf || grep -q '"cluster"' deploy/secrets/nats.conf || \
		{ echo 'deploy/secrets/nats.conf is for a single NATS server: see "High availability" in docs/operations.md' >&2; exit 1; }
	chmod 700 deploy/secrets
	$(BIN)/headgate secrets init --dir deploy/secrets --cluster nats-1,nats-2,nats-3
	grep -q '^HEADGATE_NATS_REPLICAS=' .env || printf '%s\n' 'HEADGATE_NATS_REPLICAS=3' \
		'HEADGATE_NATS_MONITOR=http://nats:8222,http://nats-2:8222,http://nats-3:8222' >> .env
	test "$$(id -u)" != 0 || chown -R $(COMPOSE_UID):$(COMPOSE_GID) deploy/secrets

.env:
	printf 'HEADGATE_UID=%s\nHEADGATE_GID=%s\n' $(COMPOSE_UID) $(COMPOSE_GID) > .env

# Starts what docker-compose.yml says as processes on loopback, sends traffic and checks; needs no container engine.
compose-rehearsal: setup
	$(BIN)/python -m deploy.rehearsal
	$(BIN)/python -m deploy.rehearsal --ha

image-size: setup
	$(BIN)/python -m deploy.image_size

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
