# Every target sets .venv up first (instant when it is there); all real work is `clmerge`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
empty  :=
# Command-line narrowing: make bench DATASETS="glyphs digits" TASKS="5 10" METHODS="pm average@merged" SEEDS=3 ...
flag    = $(if $($(1)),--$(2) "$($(1))")
GRID    = $(call flag,SUITE,suite) $(call flag,DATASETS,datasets) $(call flag,TASKS,tasks) $(call flag,METHODS,methods) \
          $(call flag,START,start) $(call flag,TRAINER,trainer) $(call flag,HEAD,head) $(call flag,SEEDS,seeds) $(call flag,PROTOCOL,protocol) $(call flag,RESULTS,results) \
          $(call flag,DATA,data)
RUN     = $(GRID) $(call flag,GPUS_PER_RUN,gpus-per-run) $(call flag,EXECUTOR,executor) $(call flag,WORKERS,workers) \
          $(call flag,SHARD,shard) $(call flag,RERUN,rerun)

RECORDS = $(or $(RESULTS),results)

.PHONY: help setup bench plan tune report paper smoke test quick lint clean clean-results distclean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 15

setup: $(VENV)/.ready  ## make .venv and install

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "clmerge needs Python 3.10 or newer; set PYTHON=..."; exit 2; }
	@echo "setting up $(VENV) (about 5 GB, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

bench: setup  ## run the grid and print the table (see README for DATASETS=, METHODS=, ...)
	@$(BIN)/clmerge run $(RUN)

plan: setup  ## say what `make bench` would do
	@$(BIN)/clmerge plan $(GRID)

tune: setup  ## choose values on validation streams, one budget for all: make tune METHODS=... DATASETS=... OUT=tuned.yaml
	@$(BIN)/clmerge tune $(call flag,METHODS,methods) $(call flag,DATASETS,datasets) $(call flag,TASKS,tasks) $(call flag,PROTOCOL,protocol) \
	  $(call flag,TRIALS,trials) $(call flag,REPEATS,repeats) $(call flag,SPACE,space) $(call flag,OUT,out) $(call flag,EXECUTOR,executor) \
	  $(call flag,WORKERS,workers) $(call flag,GPUS_PER_RUN,gpus-per-run) $(call flag,RESULTS,results) $(call flag,DATA,data)

report: setup  ## write tables and figures of the results at hand to reports/out
	@$(BIN)/clmerge report $(call flag,RESULTS,results) $(call flag,DATA,data)

paper: setup  ## what is there of each paper's table, written to reports/out/paper (TABLES=...; MISSING=run runs the rest)
	@$(BIN)/clmerge paper $(call flag,TABLES,tables) $(if $(MISSING),--run) $(call flag,OUT,out) $(call flag,EXECUTOR,executor) \
	  $(call flag,WORKERS,workers) $(call flag,GPUS_PER_RUN,gpus-per-run) $(call flag,RESULTS,results) $(call flag,DATA,data)

smoke: setup  ## the whole path in under a minute: every method in-process, then one trial under Ray
	@rm -rf results/smoke
	@$(BIN)/clmerge run --suite smoke --protocol-set train.epochs=1 --executor local --results results/smoke
	@$(BIN)/clmerge run --suite smoke --protocol-set train.epochs=1 --results results/smoke --methods pm --seeds 1,
	@$(BIN)/clmerge report --results results/smoke --out results/smoke/report

lint: setup  ## ruff, mypy, and which folder may import which
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

test: lint  ## lint, types and tests
	@$(BIN)/python -m pytest

quick: setup  ## the rules and the parts without torch, in under half a minute
	@$(BIN)/python -m pytest -m unit $(wildcard tests/common) tests/config tests/method tests/plan tests/records tests/registry tests/rules

clean:  ## delete what is made again in minutes: generated reports, smoke results, logs, caches of tools
	rm -rf reports/out results/smoke results/ray .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

clean-results:  ## delete the records of all runs and what they share, after asking (YES=1: without)
	@set -e; count=$$(find "$(RECORDS)/runs" -name cell.json 2>/dev/null | wc -l); \
	size=$$(du -sch "$(RECORDS)/runs" "$(RECORDS)/cache" 2>/dev/null | tail -n 1 | cut -f 1); \
	echo "$(RECORDS)/runs and $(RECORDS)/cache: $$((count)) records, $$size in all"; \
	if [ "$(YES)" != 1 ]; then \
	  [ -t 0 ] || { echo "nothing deleted: there is no terminal to ask on; YES=1 deletes without asking"; exit 2; }; \
	  printf 'write "delete" to delete them: '; read -r answer; \
	  [ "$$answer" = delete ] || { echo "nothing deleted"; exit 1; }; \
	fi; \
	rm -rf "$(RECORDS)/runs" "$(RECORDS)/cache"

distclean: clean clean-results  ## as clean and clean-results, and .venv and prepared data
	rm -rf $(VENV) data/prepared
