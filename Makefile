# The project's verbs. The first that runs sets up .venv; nothing else is installed by hand.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := tcd configs deployments graphs preprocessors demo benchmarks examples tests docs/theme

.DEFAULT_GOAL := help
.PHONY: help setup demo serve fetch key check-config test test-deep test-gpu fuzz check docs bench bench-peers bench-gpu soak survive screenshots quality train clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## install everything into .venv

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# For its file of CLIP's vocabulary, which tests read; torchvision, which it wants, is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps open_clip_torch
	touch $(READY)

demo: $(READY) ## start the service, have every task drawn over HTTP, show a grid of it, stop
	$(BIN)/python -m demo.run

serve: $(READY) ## run the service with the demo models on 127.0.0.1:8000 until Ctrl-C
	$(BIN)/python -m demo.serve

CONFIG ?= configs/production/guide.yaml
fetch: $(READY) ## bring the weights of CONFIG (all, or MODEL="sdxl sd15"), check them; TO=s3://bucket/prefix: mirror them
	$(BIN)/python -m configs.fetch $(CONFIG) $(addprefix --model ,$(MODEL)) $(if $(TO),--to "$(TO)")

key: $(READY) ## make a key for the service: NAME=alice
	$(BIN)/python -m configs.keys $(if $(NAME),"$(NAME)")

check-config: $(READY) ## say what is wrong with CONFIG before it is deployed; NODES=1: on the cluster, OFFLINE=1: no hub
	@! grep -qs demo/models $(CONFIG) || $(BIN)/python -m demo.standins >&2  # which are not in the repository
	$(BIN)/python -m graphs.check $(if $(NODES),--nodes) $(if $(OFFLINE),--offline) $(CONFIG)

test: $(READY) ## all tests but the deep ones
	$(BIN)/python -m pytest -m 'not deep and not gpu and not alone' -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder; \
	beside=$$?; $(BIN)/python -m pytest -m 'alone and not deep and not gpu' && exit $$beside

test-deep: $(READY) ## the long versions of the property tests
	$(BIN)/python -m pytest -m deep

test-gpu: $(READY) ## the tests of the engine on a CUDA device; TCD_TEST_DEVICE=cpu tries them without
	$(BIN)/python -m pytest -m gpu tests/gpu

fuzz: $(READY) ## EXAMPLES=3000 requests, right and wrong, to a service of its own; SEED=0
	$(BIN)/python -m pytest -s tests/fuzz

check: $(READY) ## lint, types, layers
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## the documentation as a site, in out/site
	$(BIN)/python -m mkdocs --quiet build --strict

bench: $(READY) ## the benchmarks; results go to standard output
	$(BIN)/python -m benchmarks.bench_engine
	$(BIN)/python -m benchmarks.bench_http
	$(BIN)/python -m benchmarks.bench_tasks

PEERS := .venv-peers

# The peers' servers have an environment of their own. LitServe asks for nothing that clashes with
# the project's packages, so that it shares them by a .pth, torch above all, and adds its own.
$(PEERS)/.ready: $(READY) benchmarks/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r benchmarks/peers/requirements.txt
	touch $@

bench-peers: $(PEERS)/.ready ## the service beside FastAPI, Ray's tutorial and LitServe; takes long; QUICK=1 less so
	$(BIN)/python -m benchmarks.peers --out out/bench-peers.json $(if $(QUICK),--quick)

DEVICE ?= cuda
bench-gpu: $(READY) ## the engine on a GPU, at most nine minutes; DEVICE=cpu QUICK=1 tries it here
	$(BIN)/python -m benchmarks.gpu --device $(DEVICE) $(if $(QUICK),--quick)

MINUTES ?= 30
survive: $(READY) ## JOBS=1000 jobs while every process of the service is killed in turn; STORAGE=folder or s3
	$(BIN)/python -m tests.survival --jobs $(or $(JOBS),1000) --storage $(or $(STORAGE),folder)

soak: $(READY) ## mixed load and faults on the demo service for MINUTES; a report, out/soak.json
	$(BIN)/python -m demo.standins
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

screenshots: $(READY) ## the documentation's pictures of the page, anew
	TCD_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/deployments/ingress/playground/test_look.py

quality: $(READY) ## how well the demo's models draw, measured through the service; takes long
	$(BIN)/python -m benchmarks.quality

train: $(READY) ## train the demo's models that demo/weights lacks; goes on where it was stopped
	$(BIN)/python -m demo.train

clean: ## remove what the demo and the tools wrote
	rm -rf out demo/models demo/models.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis
