# `make` lists the targets. Each builds what it needs first, from Python 3.11 and a package index.

# The first that is new enough. In an environment that holds vLLM for a GPU, its python3.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>&- && echo $$p && break; done)
MODEL ?= models/smollm2-135m-instruct
PORT ?= 8000
ARGS ?=
# Another version of vLLM, in an environment of its own: make test VLLM=0.29.0
VLLM ?=

VENV := .venv$(if $(VLLM),-$(VLLM))/bin
# Two threads on two busy cores were eight times slower than one: a test's models are small.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 \
	$(VENV)/python -m pytest -q --durations=10 -n 2 --dist loadgroup

# Containers often set it; every run would then recompile vLLM's and torch's modules (20 s).
unexport PYTHONDONTWRITEBYTECODE
export PORT
ifneq ($(VLLM),)
export VLLM_SINK_VLLM = $(VLLM)
endif

.DEFAULT_GOAL := help
.PHONY: help env lock model gemma text serve test test-all nightly test-gpu memcheck bench-gpu soak fuzz evidence evidence-gpu peers monitoring-test ray-test manifests schemas features dashboard dashboard-picture compat lint type ci clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

env: ## build .venv: vLLM for this machine, this project, its tools (VLLM_SINK_DEVICE=cpu|cuda)
	@$(or $(PYTHON),$(error Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11)) deploy/local/env.py

lock: env ## write requirements/cpu.txt and cuda.txt: all versions (ARGS="--upgrade-package NAME")
	@$(VENV)/python deploy/local/lock.py $(ARGS)

model: env ## make models/smollm2-135m-instruct, a real model of 135 M parameters
	@$(VENV)/python deploy/local/make_model.py

gemma: env ## make models/gemma-3-270m for the evidence; Gemma's terms of use apply
	@$(VENV)/python deploy/local/make_gemma.py

text: env ## make models/texts, Jane Austen's novels to measure on
	@$(VENV)/python deploy/local/make_text.py

serve: env $(if $(filter models/smollm2-135m-instruct,$(MODEL)),model) ## serve MODEL= on PORT=, with more flags in ARGS=
	@exec deploy/local/serve.sh $(MODEL) $(ARGS)

test: env model text schemas ## run the tests, without the slow ones (more pytest flags in ARGS=)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: env model text schemas ## run all tests
	$(PYTEST) $(ARGS)

# Without prometheus and promtool the tests of monitoring are skipped, with the reason.
nightly: env model text schemas ## what `make test` leaves out on a CPU: slow, Ray, monitoring, a patched vLLM
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || \
		echo "no prometheus or no promtool (Debian: prometheus): tests that need them are skipped"
	$(PYTEST) -m slow $(ARGS)

test-gpu: env ## run the tests that need an NVIDIA GPU, four at a time
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(VENV)/python -m pytest -q -n 4 tests/gpu $(ARGS)

memcheck: env ## run this project's kernels under NVIDIA's compute-sanitizer
	compute-sanitizer --tool memcheck --error-exitcode 1 $(VENV)/python -m pytest -q \
		tests/gpu/test_providers.py -k "triton and (plain or odd or alibi) and not flash" $(ARGS)

bench-gpu: env ## measure every GPU figure of the README, into benchmarks/out
	$(VENV)/python -m benchmarks.kernel --json benchmarks/out/kernel.json
	for e in "tpot --batch 1,32" "tpot --batch 128 --layers 12" ttft full flat; do \
		$(VENV)/python -m benchmarks.serving --shape llama-3-8b --experiment $$e \
			--json "benchmarks/out/serving-$$(echo $$e | tr -d ', -').json" || exit 1; done

evidence: env model text ## run the paper's experiments on a CPU, an hour; resumes after a stop (FORCE=1: all again)
	nice $(VENV)/python -m benchmarks.paper.evidence $(ARGS)

evidence-gpu: env model text ## run those that need a GPU: a million tokens, time against cache size
	$(VENV)/python -m benchmarks.paper.evidence --gpu $(ARGS)

peers: env model text ## compare the peers: who computes the policy, past the context, speed (three hours)
	$(VENV)/python -m benchmarks.peers.env
	$(VENV)/python -m benchmarks.peers.gguf
	$(VENV)/python -m benchmarks.peers.agreement --tokens 512 --json benchmarks/out/peers-agreement.json
	$(VENV)/python -m benchmarks.peers.beyond --json benchmarks/out/peers-beyond.json
	$(VENV)/python -m benchmarks.peers --json benchmarks/out/peers.json $(ARGS)

monitoring-test: env model ## run every query of every panel and rule: real server, real Prometheus
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || { \
		echo "make monitoring-test needs prometheus and promtool (Debian: prometheus)"; exit 1; }
	$(PYTEST) tests/monitoring $(ARGS)

ray-test: env ## run a local Ray cluster: 32 sessions on two replicas, one killed; scaling; the executor
	$(PYTEST) -n 0 -s tests/ray $(ARGS)

manifests: env ## write deploy/monitoring/prometheusrule.yaml from its rules
	$(VENV)/python deploy/monitoring/prometheusrule.py

# Schemas of custom resources come from npm; without it their tests are skipped.
schemas: build/schemas/node_modules

build/schemas/node_modules: tests/deploy/schemas/package.json
	@mkdir -p build/schemas && cp $< build/schemas
	@if command -v npm >/dev/null; then \
		npm install --silent --no-audit --no-fund --prefix build/schemas && touch $@; fi

features: env ## write docs/features.md from vllm_sink/startup/features/
	$(VENV)/python -m vllm_sink.startup.features

dashboard: env ## write deploy/monitoring/dashboard.json from its panels
	$(VENV)/python deploy/monitoring/dashboard.py

dashboard-picture: ## draw docs/dashboard.png from a live server (part of monitoring-test)
	DASHBOARD_PICTURE=docs/dashboard.png MONITORING_SECONDS=150 $(MAKE) monitoring-test

# Small segments and a pool of 400 blocks: many rollovers, and soon every block has been used.
# At the end a fresh server takes turns with the old one for seven minutes: the machine's speed cancels.
soak: env model ## run endless streams beside short requests for MINUTES=60; fail if anything grows
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} VLLM_CPU_KVCACHE_SPACE=$${VLLM_CPU_KVCACHE_SPACE:-1} HF_HUB_OFFLINE=1 \
	$(VENV)/python -m benchmarks.endless --model $(MODEL) --streams 8 --minutes $(or $(MINUTES),60) \
		--segment-tokens 1024 --serve-args='--enforce-eager --num-gpu-blocks-override 400' \
		--pairs 10 --check --json benchmarks/out/soak.json $(ARGS)

fuzz: env ## send malformed requests to every route for MINUTES=30; fail if any other request notices
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(VENV)/python -m tests.fuzz --minutes $(or $(MINUTES),30) \
		--json build/fuzz.json $(ARGS)

lint: env ## ruff: check and format; import-linter: no room imports a higher one, no cycles
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/lint-imports --no-cache

type: env ## mypy on the package
	$(VENV)/mypy vllm_sink

compat: ## list which hooks hold in another vLLM, from its sources: make compat VLLM=0.33.0
	@test -n "$(VLLM)" || { echo "make compat VLLM=0.33.0"; exit 2; }
	@VLLM_SINK_VLLM= $(MAKE) --no-print-directory env VLLM=
	.venv/bin/python -m vllm_sink.compat.report $(VLLM)

ci: lint type test ## run what CI runs

clean: ## remove what was built: .venv, models, caches
	rm -rf .venv models build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
