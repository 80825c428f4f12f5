# Every target makes the environment it needs; CI runs these same targets.
PYTHON ?= python3
VENV ?= .venv
# One process more than there are cores: many tests wait for servers.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
TESTS ?= tests --ignore=tests/engines --ignore=tests/stores
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo test test-slow test-alone test-stores test-engines test-all fuzz lint format types wheel airflow check schema clean bench-main-job bench-beam bench-chat bench-limit bench-incremental bench-reuse bench-index bench-search bench-serve bench-engines figures bench-status

help:
	@echo "make demo     draw pictures, embed them on the local emulator, search them (no key, no network)"
	@echo "make test     run the quick tests: at most 8 minutes on two cores"
	@echo "make test-all run all tests; its parts are test-alone (they measure time), test, test-slow (kills, full disks,"
	@echo "              long searches for counterexamples, fuzzing), test-stores and test-engines"
	@echo "make test-stores   whole jobs on S3, Google's and Azure's protocols, on servers of its own (needs npm)"
	@echo "make test-engines  the same jobs on every engine: Prism, Dask, Beam's job server; Flink and Spark where available"
	@echo "make fuzz     run each fuzz target for ten minutes, from a seed that is drawn and printed"
	@echo "make check    run what CI runs: test-all, lint, types, wheel, and the example's DAG on a real Airflow"
	@echo "make bench-…  benchmarks, by hand: main-job, beam, chat, limit, incremental, reuse, index, search, serve, engines"
	@echo "make bench-status  list benchmark results whose measured code has changed since"
	@echo "make figures  write the stored results of the benchmarks into the pages"

demo: $(VENV)/.demo
	$(BIN)/epithre-beam demo demo

# A file's tests stay in one process, since they share servers.
# Files keep their order: those with the fewest tests, which would come last otherwise, are often the longest.
# Threads that spin while they wait would keep the other process from its core.
PYTEST := OMP_WAIT_POLICY=$(or $(OMP_WAIT_POLICY),passive) $(BIN)/python -m pytest

test: $(VENV)/.dev
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not fuzz and not alone" $(TESTS)

test-slow: export EPITHRE_BEAM_FUZZ_S ?= 8
test-slow: $(VENV)/.dev
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "(slow or fuzz) and not alone" $(TESTS) || test $$? -eq 5

# These measure time or memory: nothing else may run. Exit code 5: there are none in TESTS.
test-alone: $(VENV)/.dev
	$(PYTEST) -m alone $(TESTS) || test $$? -eq 5

test-all: test-alone test test-slow test-stores test-engines

# `make test-slow` runs the same targets for 8 seconds each, from seeds that are always the same.
fuzz: export EPITHRE_BEAM_FUZZ_S ?= 600
fuzz: export EPITHRE_BEAM_FUZZ_SEED := $(or $(EPITHRE_BEAM_FUZZ_SEED),$(shell date +%s))
fuzz: $(VENV)/.dev
	@echo "EPITHRE_BEAM_FUZZ_SEED=$(EPITHRE_BEAM_FUZZ_SEED), $(EPITHRE_BEAM_FUZZ_S) s for each target"
	$(PYTEST) --log-cli-level=INFO -m fuzz $(or $(FUZZ),tests/fuzz)

# Three processes: one of the files does little but wait for a minute to go by.
test-engines: $(VENV)/.dev
	$(BIN)/python tests/engines/fetch.py
	$(PYTEST) -n 3 --dist loadfile --timeout=300 tests/engines

test-stores: $(VENV)/.stores
	$(PYTEST) -n $(JOBS) --dist loadfile tests/stores

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev
	$(BIN)/mypy

wheel: $(VENV)/.dev
	PYTHON=$(PYTHON) $(BIN)/python .ci/wheel.py

airflow: $(VENV)/.dev
	$(BIN)/python .ci/airflow.py

check: lint types test-all wheel airflow

schema: $(VENV)/.dev
	$(BIN)/epithre-beam schema > configs/job.schema.json
	$(BIN)/epithre-beam schema --search-batch > configs/search.schema.json

bench-main-job: $(VENV)/.dev
	$(BIN)/python benchmarks/main_job.py

bench-beam: $(VENV)/.dev
	$(BIN)/python benchmarks/beam_plugin.py
	$(BIN)/python benchmarks/beam_catalog.py

bench-chat: $(VENV)/.dev
	$(BIN)/python benchmarks/chat.py

bench-limit: $(VENV)/.dev
	$(BIN)/python benchmarks/limit.py

bench-incremental: $(VENV)/.dev
	$(BIN)/python benchmarks/incremental.py

bench-reuse: $(VENV)/.dev
	$(BIN)/python benchmarks/reuse.py

bench-index: $(VENV)/.dev
	$(BIN)/python benchmarks/index.py --rivals none
	$(BIN)/python benchmarks/index.py
	$(BIN)/python benchmarks/index.py --growth 100000,300000,1000000

bench-search: $(VENV)/.dev
	$(BIN)/python benchmarks/search.py

bench-serve: $(VENV)/.dev
	$(BIN)/python benchmarks/serve.py

bench-engines: $(VENV)/.dev
	$(BIN)/python tests/engines/fetch.py
	$(BIN)/python benchmarks/engines.py

# These two need Python 3.11 and git, and no environment.
bench-status:
	@$(PYTHON) benchmarks/figures.py status

figures:
	@$(PYTHON) benchmarks/figures.py fill

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	  || { echo "Python 3.11 to 3.14 is needed, $(PYTHON) is another: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[beam,fast,serve,explore]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[beam,fast,serve,explore,test,dev]'
	@touch $@ $(VENV)/.demo

# Azurite is Azure's emulator, a program of Node's; the other servers are Python.
$(VENV)/.stores: $(VENV)/.dev
	$(PIP) --editable '.[s3,gcs,azure]'
	npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
