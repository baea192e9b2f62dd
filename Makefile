# Every target sets up what it needs. Only Python 3.11+ and a package client are expected.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
RUN_READY := .venv/ready-to-run
DEV_READY := .venv/ready-to-develop
BENCH_READY := .venv/ready-to-measure

.PHONY: help run dev test faults pictures bench check fmt generate lock clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUN_READY)  ## Run the worker on an embedded broker with a mail inbox, on sample jobs
	@$(BIN)/otp-stream demo

dev: $(DEV_READY)  ## The same, started anew at every change of the code
	@$(BIN)/faststream run otp_stream.cli.demo:app --factory --host 127.0.0.1 --port 8000 \
		--reload --app-dir $(CURDIR) --extension html --extension txt --extension css

test: $(DEV_READY)  ## Every test, on a real RabbitMQ, real SMTP, real Chromium
	@$(BIN)/python tests/ground.py $(BIN)/python -m pytest -n 2 --cov --cov-report=term

faults: $(DEV_READY)  ## The fault suite alone, and its table; FAULTS_SEED, FAULTS_ROUNDS, FAULTS_SOAK_S: the long form
	@rm -f .faults.jsonl
	@OTP_FAULTS_REPORT=$(CURDIR)/.faults.jsonl $(BIN)/python tests/ground.py \
		$(BIN)/python -m pytest -q -n 2 tests/faults; failed=$$?; $(BIN)/python tools/faults.py .faults.jsonl; exit $$failed

pictures: $(DEV_READY)  ## Take the pictures of the operations page for the docs anew, in four minutes
	@$(BIN)/python tests/ground.py $(BIN)/python tools/pictures.py

bench: $(BENCH_READY)  ## This worker beside its peers: table and charts in bench/out; BENCH="--pairs 1", BENCH=growth
	@$(BIN)/python tests/ground.py $(BIN)/python -m bench $(BENCH)
	@$(BIN)/python -m bench.micro

check: $(DEV_READY)  ## Lint, types, floors, fast tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q -n 2 tests/unit tests/stream

fmt: $(DEV_READY)  ## Format, and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generate: $(DEV_READY)  ## Make the generated files: AsyncAPI, .env.example, settings table, state diagram
	@$(BIN)/python tools/generate.py

lock: $(DEV_READY)  ## Pin the dependencies anew
	@$(BIN)/uv pip compile pyproject.toml $(LOCK) -o requirements.txt
	@$(BIN)/uv pip compile pyproject.toml --group dev $(LOCK) -o requirements-dev.txt
	@$(BIN)/uv pip compile --group bench -c requirements-dev.txt $(LOCK) -o requirements-bench.txt
LOCK := -q -U --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-strip-extras

clean:  ## Remove what was built
	@rm -rf .venv dist build .coverage .coverage.* .pytest_cache .ruff_cache .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv .venv

$(RUN_READY): requirements.txt pyproject.toml | .venv/bin/python
	@echo "setting up .venv …"
	@$(PIP) --require-hashes -r requirements.txt
	@$(PIP) --no-deps -e .
	@touch $@

$(DEV_READY): requirements-dev.txt pyproject.toml | .venv/bin/python
	@echo "setting up .venv for development …"
	@$(PIP) --require-hashes -r requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(RUN_READY)

$(BENCH_READY): requirements-bench.txt $(DEV_READY)
	@echo "setting up .venv for measuring …"
	@$(PIP) --require-hashes -r requirements-bench.txt
	@touch $@
