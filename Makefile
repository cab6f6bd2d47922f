# Every target makes the environment it needs in .venv, once and quietly.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := out/demo
ROOMS := optimize runtimes kernels model_repo_templates bench src tests examples
export PYTHONUNBUFFERED := 1

.PHONY: env demo test check fmt bench clean
.DEFAULT_GOAL := help

help: ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

env: $(READY) ## the environment in .venv
$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (about a minute) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(READY) ## the whole road on MovieLens: train, optimize, prove, serve on Triton, bench
	@$(BIN)/python examples/recommender/train.py
	@rm -rf $(DEMO)
	@$(BIN)/redline optimize examples/recommender/job.py --out $(DEMO)/artifact --baseline $(DEMO)/baseline
	@$(BIN)/redline bench $(DEMO)/artifact --engine triton --duration 15s --report $(DEMO)/load
	@$(BIN)/redline inspect $(DEMO)/artifact
	@echo "reports        $(DEMO)/artifact/report.html  $(DEMO)/load/report.html"

test: $(READY) ## every test that this machine can run; says what it skipped and why
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered -q

check: $(READY) ## ruff, mypy --strict, the fast tests
	@$(BIN)/ruff check $(ROOMS)
	@$(BIN)/ruff format --check --quiet $(ROOMS)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -m "not slow and not triton"

fmt: $(READY) ## format and fix imports
	@$(BIN)/ruff check --fix --quiet $(ROOMS)
	@$(BIN)/ruff format --quiet $(ROOMS)

bench: $(READY) ## the goals of bench/goals.toml, measured and printed as held or missed (after `make demo`)
	@test -f $(DEMO)/artifact/manifest.json || $(MAKE) --no-print-directory demo
	@PYTHONPATH=examples/recommender $(BIN)/python -m redline.bench.goals $(DEMO)/artifact --baseline $(DEMO)/baseline

clean: ## what was made here; the cache of data, steps and servers stays
	rm -rf $(VENV) out build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis .coverage*
