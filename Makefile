# Every target makes the environment it needs in .venv, once and quietly.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := out/demo
ROOMS := optimize runtimes kernels model_repo_templates bench src tests examples
export PYTHONUNBUFFERED := 1

.PHONY: bench-kernels bench-llm demo-llm env demo test check fmt bench image kernels clean
.DEFAULT_GOAL := help

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

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
	@$(BIN)/redline optimize examples/recommender/job.py --recipes all --out $(DEMO)/artifact --baseline $(DEMO)/baseline
	@$(BIN)/redline bench $(DEMO)/artifact --engine triton --rate 200 --duration 15s --report $(DEMO)/load
	@$(BIN)/redline inspect $(DEMO)/artifact
	@echo "reports        $(DEMO)/artifact/report.html  $(DEMO)/load/report.html"

demo-llm: $(READY) ## a language model: quantize, gate on perplexity, prove, serve on vLLM, chat, bench (5 GB, once)
	@$(BIN)/python -m redline.runtimes.llm_env
	@$(BIN)/python examples/llm/smollm2.py
	@rm -rf $(DEMO)-llm
	@$(BIN)/redline optimize examples/llm/job.py --out $(DEMO)-llm/artifact
	@$(BIN)/python examples/llm/chat.py $(DEMO)-llm/artifact
	@$(BIN)/redline inspect $(DEMO)-llm/artifact
	@echo "report         $(DEMO)-llm/artifact/report.html"

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

image: $(READY) ## the predictor image, built, run caged, replayed, benched, stopped (root; buildah, runc, mmdebstrap)
	@$(BIN)/python -m redline.model_repo_templates.image.build
	@test -f $(DEMO)/artifact/manifest.json || test -f out/image/artifact/manifest.json || { \
		$(BIN)/python examples/recommender/train.py && \
		$(BIN)/redline optimize examples/recommender/job.py --recipes openvino-int8-static --no-prove --out out/image/artifact; }
	@$(BIN)/python -m redline.model_repo_templates.image.rehearse \
		$$(test -f $(DEMO)/artifact/manifest.json && echo $(DEMO)/artifact || echo out/image/artifact)

kernels: $(READY) ## every .cu: registers, spills, shared memory per architecture; run on the CPU against its reference
	@$(BIN)/python -m redline.kernels.check

bench-kernels: $(READY) ## the fused kernels beside their rivals, and their distance from the peak; then whole recommenders
	@$(BIN)/python -m redline.kernels.bench; layers=$$?; \
		$(BIN)/python examples/recommender/train.py && $(BIN)/python -m redline.kernels.bench_recommender && exit $$layers

bench-llm: $(READY) ## what the predictor costs a language model, against goals_llm.toml (after `make demo-llm`)
	@test -f $(DEMO)-llm/artifact/manifest.json || $(MAKE) --no-print-directory demo-llm
	@$(BIN)/python -m redline.bench.llm_goals $(DEMO)-llm/artifact

clean: ## what was made here; the cache of data, steps and servers stays
	rm -rf $(VENV) out build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis .coverage*
