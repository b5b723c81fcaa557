# Everything runs in .venv, which tools/set_up.py makes; `make PYTHON=python3.12 ...` picks another Python.
PYTHON ?= python3
BIN := .venv/bin

# OpenMP's threads sleep while they wait: awake they fight with other programs (src/dualrate_command.py)
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo docs package test test-slow test-forecasts test-pipelines test-texts reproduce-train reproduce-report benchmark lint types check clean env env-dev env-docs

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## /{n = split($$1, names, " "); for (i = 1; i <= n; i++) printf "  make %-19s %s\n", names[i], $$2}' $(MAKEFILE_LIST)

demo:  ## set up, train a small model, measure the shipped ones, write demo/report.html (10 minutes at most)
	@echo "demo: about 7 minutes, and the first time some more before them, to set up .venv"
	@$(PYTHON) tools/set_up.py
	@$(BIN)/dualrate demo

test test-%: export OMP_NUM_THREADS ?= 1
# the processes that tests start find the sources compiled, whatever the environment says
test test-%: export PYTHONDONTWRITEBYTECODE :=

test: env-dev  ## set up, then run the tests (ten minutes, two processes of one thread) [PROCESSES=4]
	@$(BIN)/python -m pytest --numprocesses=$(or $(PROCESSES),2) --dist=worksteal --session-timeout=1500

test-slow: env-dev  ## the long fault and training tests
	@$(BIN)/python -m pytest -m slow

test-forecasts test-pipelines test-texts: test-%: env-dev  ## the tests of this wing
	@$(BIN)/python -m pytest --numprocesses=$(or $(PROCESSES),2) --dist=worksteal tests/$*

reproduce-train: env  ## train a model of docs/results/settled.md, e.g. MODEL=settle-dual-25 (two to three hours of a core; resumes)
	@$(BIN)/python -m studies.train $(MODEL)

reproduce-report: env-dev  ## dual-rate against single networks, docs/results/settled.md (nine to twenty hours of a core; KEPT=1: from kept rows and times, seconds)
	@$(BIN)/python -m studies.report settled-25 --compile --precision float32 $(if $(KEPT),--kept)

benchmark: env-dev  ## ratios of speed and memory on one thread, and their aims (ten minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ratios
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.calls

docs: env-docs  ## the documentation as a site in build/site; a warning is an error, a link that leads nowhere too
	@$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet -c docs . build/site
	@echo "docs: open build/site/index.html"

package: env-dev  ## build wheel and sdist in dist/, try them in a fresh environment
	@$(BIN)/python tools/try_package.py

lint: env-dev  ## style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: env-dev  ## static types
	@$(BIN)/pyright

check: test lint types docs package  ## all that CI runs

clean:  ## remove caches, build output and the demo's output; keep .venv and runs/
	rm -rf demo build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests studies tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

env:  ## make .venv, where the command dualrate is
	@$(PYTHON) tools/set_up.py

env-dev:
	@$(PYTHON) tools/set_up.py --dev

env-docs:
	@$(PYTHON) tools/set_up.py --docs
