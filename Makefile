# make demo | make test: all set-up included, on a fresh machine with Python 3.11 or newer.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo check test nightly mutants crash-points bench generate clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NIGHTLY_ARGS ?=
PARALLEL ?= -n auto
# `-n 2 --dist loadgroup`: two halves side by side, in two thirds of the time; deadlines are missed on a busy machine.
SIDE_BY_SIDE ?=

# Runs one part and says what it took; a failure stops the target.
define part
	@started=$$SECONDS; echo "== $(1)"; $(2); echo "== $(1): $$((SECONDS - started)) s"
endef

help:
	@echo "make demo             the main job, in memory (CLUSTER=real: on the real programs)"
	@echo "make check            lint, types, layers and pure tests; needs no Go"
	@echo "make test             everything that guards a change, on the real programs"
	@echo "make nightly          long fault, soak and scale runs"
	@echo "make mutants          seeded bugs, each to be caught by the test that it names"
	@echo "make crash-points     every write of every scenario struck on a real API server (CRASH_POINTS_SHARD=i/n)"
	@echo "make bench            benchmarks, with their gates"
	@echo "make generate         crds/ and docs/reference/ from the models"
	@echo "make clean            removes .venv and caches"

$(VENV)/.base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "vmtenancy needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,agent]'
	command -v cc >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cc]'
	touch $@

# What building and running the real programs needs beyond `vmtenancy` itself: certificates, and Go where there is none.
$(VENV)/.real: $(VENV)/.dev
	go version 2>/dev/null | grep -Eq 'go1\.(2[6-9]|[3-9][0-9])' || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[go]'
	touch $@

demo: $(VENV)/$(if $(CLUSTER),.real,.base)
	@$(BIN)/vmtenancy demo $(if $(CLUSTER),--cluster $(CLUSTER))

check: $(VENV)/.dev
	$(call part,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call part,types,$(BIN)/mypy)
	$(call part,layers,$(BIN)/lint-imports)
	$(call part,generated files,$(BIN)/python -m vmtenancy.api.crdgen --check crds && $(BIN)/python -m vmtenancy.api.reference --check docs/reference)
	$(call part,pure tests,$(BIN)/python -m pytest -q $(PARALLEL) -m "not cluster and not kind and not nightly and not slow")

test: $(VENV)/.real
	$(call part,real components,$(BIN)/python -m vmtenancy.testing.build)
	$(call part,pure tests,$(BIN)/python -m pytest -q $(PARALLEL) -m "not cluster and not kind and not nightly")
	$(call part,tests on the real programs,$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "cluster and not kind and not nightly" --durations=25)

nightly: $(VENV)/.real
	$(call part,real components,$(BIN)/python -m vmtenancy.testing.build)
	$(call part,nightly,$(BIN)/python -m pytest -q -m nightly $(NIGHTLY_ARGS))

mutants: $(VENV)/.real
	$(call part,real components,$(BIN)/python -m vmtenancy.testing.build)
	$(call part,mutants,$(BIN)/python tests/mutants/run_mutants.py)

crash-points: $(VENV)/.real
	$(call part,real components,$(BIN)/python -m vmtenancy.testing.build)
	@PYTHONPATH=tests/reconcile $(BIN)/python tests/faults/api_crash_points.py

bench: $(VENV)/.dev
	$(call part,placement,$(BIN)/python benchmarks/placement.py)
	$(call part,quota,$(BIN)/python benchmarks/quota.py)

generate: $(VENV)/.dev
	$(BIN)/python -m vmtenancy.api.crdgen crds
	$(BIN)/python -m vmtenancy.api.reference docs/reference

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
