# Every target sets up what it needs. Only Python 3.11+ and a package client are expected.
PYTHON ?= python3
# PYTHON=3.13 is python3.13, or Debian's in a separate folder where this machine has none
ifneq ($(filter 3.%,$(PYTHON)),)
  ifeq ($(shell python$(PYTHON) -c 'print(1)' 2>/dev/null),)
    DEBIAN := tools/debian.sh python $(PYTHON)
  endif
  override PYTHON := python$(PYTHON)
endif
# an environment for each version that is asked for
VENV := .venv$(patsubst python%,-%,$(filter python3.%,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
RUN_READY := $(VENV)/ready-to-run
DEV_READY := $(VENV)/ready-to-develop
BENCH_READY := $(VENV)/ready-to-measure
MUTANTS_READY := $(VENV)/ready-to-mutate
AUDIT_READY := $(VENV)/ready-to-audit
DOCS_READY := $(VENV)/ready-for-docs
# RABBITMQ=4.0 or 4.3: on that version, from Debian, where this machine's RabbitMQ is of another
GROUND := $(if $(RABBITMQ),tools/debian.sh rabbitmq $(RABBITMQ)) $(BIN)/python tests/ground.py
# More processes than cores: most tests wait most of the time
JOBS ?= 6
PYTEST := $(GROUND) $(BIN)/python -m pytest -n $(JOBS)
# Hundreds of processes start in a run: without compiled files each of them compiles the package again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run dev test coverage faults fuzz pictures gallery translations bench mutants audit docs sbom dist release check lint check-tests fmt generate lock clean

ifdef DEBIAN
$(or $(MAKECMDGOALS),help):
	@$(DEBIAN) make --no-print-directory $@
else

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(RUN_READY)  ## Run the worker on an embedded broker with a mail inbox, on sample jobs
	@$(BIN)/otp-stream demo

dev: $(DEV_READY)  ## The same, restarted after every change of the code
	@$(BIN)/faststream run otp_stream.cli.demo:app --factory --host 127.0.0.1 --port 8000 \
		--reload --app-dir $(CURDIR) --extension html --extension txt --extension css --extension po

# TESTS="tests/live/test_cli.py -x" runs a part. On another version, by default, what depends on it.
TESTS ?= $(if $(RABBITMQ),tests/faults tests/live tests/contract tests/stream,$(if $(filter .venv-%,$(VENV)),\
	tests/live/test_worker_path.py tests/contract tests/stream tests/unit))

test: $(DEV_READY)  ## Every test, on real servers; RABBITMQ=4.3 or PYTHON=3.14: on another version
	@$(PYTEST) $(TESTS)

coverage: $(DEV_READY)  ## Every test, measured in every process; fails below the limit
	@$(PYTEST) --cov --cov-report=term

faults: $(DEV_READY)  ## The fault suite and its table; FAULTS_LONG=1: random faults for ten minutes; FAULTS_SEED
	@rm -f .faults.jsonl
	@OTP_FAULTS_REPORT=$(CURDIR)/.faults.jsonl FAULTS_LONG=$(FAULTS_LONG) \
		$(PYTEST) -q $(if $(FAULTS_LONG),-o faulthandler_timeout=1800) tests/faults; failed=$$?; \
		$(BIN)/python tools/faults.py .faults.jsonl; exit $$failed

fuzz: $(DEV_READY)  ## 100,000 messages of every kind against a real worker; FUZZ_BODIES, FUZZ_SEED
	@$(GROUND) $(BIN)/python tests/fuzz.py

pictures: $(DEV_READY)  ## Take the screenshots of the operations page for the docs, in about five minutes
	@$(GROUND) $(BIN)/python tools/pictures.py

gallery: $(DEV_READY)  ## Take screenshots of all e-mails for docs/gallery.md, in half a minute
	@$(BIN)/python tools/gallery.py

translations: $(DEV_READY)  ## Update the catalogues of the e-mails; LOCALES="sv pt_PT": also add these languages
	@$(BIN)/python tools/translations.py $(LOCALES)

bench: $(BENCH_READY)  ## This worker beside its peers: table and charts in bench/out; BENCH="--pairs 1", BENCH=growth
	@$(GROUND) $(BIN)/python -m bench $(BENCH)
	@$(BIN)/python -m bench.micro

mutants: $(MUTANTS_READY)  ## Mutation run of the unit tests over otp_stream/core; MUTANTS="--max-children 1" uses one process
	@rm -rf mutants  # mutmut keeps the results of earlier runs, and a new test would not change them
	@CI=true $(BIN)/mutmut run $(MUTANTS)  # CI: Hypothesis draws the same examples in each run
	@$(BIN)/mutmut results --all true | $(BIN)/python tools/mutants.py

audit: $(AUDIT_READY)  ## Known vulnerabilities of every locked package; needs an index of advisories, and fails without
	@$(BIN)/python tools/audit.py

docs: $(DOCS_READY)  ## The documentation as a site in build/site, with all links checked; needs npm
	@$(BIN)/python tools/docs_site.py

sbom: $(DEV_READY)  ## Bill of materials of the image (CycloneDX) in dist
	@$(BIN)/python tools/sbom.py

# the time of the commit, so that everyone who builds it gets the same bytes
dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
dist: $(DEV_READY)  ## Wheel, source archive, bill of materials and their hashes in dist; the same bytes on each machine
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation >/dev/null
	@$(BIN)/python tools/sbom.py >/dev/null
	@cd dist && sha256sum * | tee SHA256SUMS

release: $(DEV_READY)  ## Check and build a release, with its notes, and say what to do next; signs and uploads nothing
	@$(BIN)/python tools/release.py
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory dist
	@$(BIN)/python tools/release.py --notes

check: $(DEV_READY)  ## Lint, types, import rules, and the tests that need no server, in a minute
	@$(MAKE) --no-print-directory -j2 --output-sync lint check-tests

lint: $(DEV_READY)  ## Lint, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright --pythonpath $(BIN)/python

check-tests: $(DEV_READY)
	@$(BIN)/python -m pytest -q -n 3 tests/unit tests/stream

fmt: $(DEV_READY)  ## Format, and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generate: $(DEV_READY)  ## Make the generated files: AsyncAPI, JSON Schemas, .env.example, settings table, state diagram
	@$(BIN)/python tools/generate.py

lock: $(DEV_READY)  ## Update the pinned dependencies
	@$(BIN)/uv pip compile pyproject.toml --all-extras $(LOCK) -o requirements.txt
	@$(BIN)/uv pip compile pyproject.toml --all-extras --group dev $(LOCK) -o requirements-dev.txt
	@$(BIN)/uv pip compile --group build -c requirements-dev.txt $(LOCK) -o requirements-build.txt
	@$(BIN)/uv pip compile --group bench -c requirements-dev.txt $(LOCK) -o requirements-bench.txt
	@$(BIN)/uv pip compile --group audit -c requirements-dev.txt $(LOCK) -o requirements-audit.txt
	@$(BIN)/uv pip compile --group docs -c requirements-dev.txt $(LOCK) -o requirements-docs.txt
	@$(BIN)/uv pip compile --group mutants -c requirements-dev.txt $(LOCK) -o requirements-mutants.txt
LOCK := -q -U --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-strip-extras

clean:  ## Remove what was built
	@rm -rf .venv .venv-3.* dist build mutants .coverage .coverage.* .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv $(VENV)

$(RUN_READY): requirements.txt requirements-build.txt pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) …"
	@$(PIP) --require-hashes -r requirements.txt -r requirements-build.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(DEV_READY): requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) for development …"
	@$(PIP) --require-hashes -r requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(RUN_READY)

$(BENCH_READY): requirements-bench.txt $(DEV_READY)
	@echo "setting up $(VENV) for measuring …"
	@$(PIP) --require-hashes -r requirements-bench.txt
	@touch $@

$(AUDIT_READY): requirements-audit.txt $(DEV_READY)
	@echo "setting up $(VENV) for the audit …"
	@$(PIP) --require-hashes -r requirements-audit.txt
	@touch $@

$(DOCS_READY): requirements-docs.txt $(DEV_READY)
	@echo "setting up $(VENV) for the documentation …"
	@$(PIP) --require-hashes -r requirements-docs.txt
	@touch $@

$(MUTANTS_READY): requirements-mutants.txt $(DEV_READY)
	@echo "setting up $(VENV) for the mutation run …"
	@$(PIP) --require-hashes -r requirements-mutants.txt
	@touch $@
endif
