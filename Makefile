# histolake from a fresh clone: needs git, make and Python 3.11 or 3.12, nothing else.
# Everything is installed into .venv, once; see infra/environment.sh.

BIN := .venv/bin
DEMO_OUT ?= demo-output

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types format bench-ingest bench-train clean

help: ## show this
	@echo "histolake: a data lake and training platform for histology paired with spatial gene expression"
	@echo
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 21
	@echo
	@echo "Variables: PYTHON=/path/to/python3.11   DEMO_OUT=demo-output   HISTOLAKE_SAMPLE_DIR=folder of real sections"

setup: ## make the environment in .venv, or reuse it
	@infra/environment.sh .venv

demo: setup ## run the whole road once; writes demo-output/report.html and summary.json
	@# 3 says that something was refused; the demo itself fails when nothing could be published.
	@status=0; $(BIN)/histolake demo --out "$(DEMO_OUT)" || status=$$?; \
	if [ $$status -eq 3 ] && [ -f "$(DEMO_OUT)/summary.json" ]; then \
	    echo "make demo: something was refused (see the report); the rest was published."; status=0; \
	fi; exit $$status

test: setup ## run the tests (those on real sections need HISTOLAKE_SAMPLE_DIR)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## check types
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-ingest: setup ## measure the ingest and reading, long; writes bench-output/ingest.json
	@$(BIN)/python -m tests.benchmarks.suite ingest $(BENCH_ARGS)

bench-train: setup ## measure reading pairs for training, long; writes bench-output/train.json
	@$(BIN)/python -m tests.benchmarks.suite train $(BENCH_ARGS)

clean: ## remove what the other targets made (the environment, the demo, caches)
	rm -rf .venv "$(DEMO_OUT)" bench-output test-output dist .pytest_cache .mypy_cache .ruff_cache
