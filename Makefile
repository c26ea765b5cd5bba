# `make help` lists what can be done. Everything is installed into .venv, once, by plain pip.

PYTHON ?= python3
EXPERIMENT ?= embedded_table
RUN ?= $(or $(run),$(if $(filter embedded_table,$(EXPERIMENT)),embedded,$(EXPERIMENT)))
LIMIT ?= $(limit)
ARGS ?=
SEED ?= 0
# For experiments with real models: the folder of the weights, and the folder that holds one folder for each benchmark.
MODEL ?=
DATA ?=
OUT ?= results/embedded_model
METHODS ?= st_simdiff fastv
RETENTION ?= 0.1 0.3 0.5
COMMA := ,
SPACE := $(subst ,, )
# Processes that share the videos. The embedded model is small enough for one on each core; a real one drives a device.
CORES := $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 4 ] && n=4; echo $$n)
PROCESSES ?= $(if $(filter embedded_table,$(EXPERIMENT)),$(CORES),1)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCK := scripts/constraints-py311.txt
SHARED := OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node $(PROCESSES) -m
# A word of the command line, unless ARGS says it: one that is given twice is refused.
WORD = $(if $(filter $(1)=% '$(1)=% "$(1)=%,$(ARGS)),,$(1)=$(2))
MAIN = $(if $(filter 1,$(PROCESSES)),$(BIN)/python -m,$(SHARED)) stsimdiff

# A .venv whose interpreter is gone is made again whatever the stamp says.
ifneq ($(shell $(BIN)/python -c "print(1)" 2>/dev/null),1)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help install reproduce-table sweep compare efficiency doctor data test test-all docs mutation lint format train-embedded clean

help: ## List the targets
	@echo "make TARGET [VARIABLE=value ...]"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | \
		awk -F '\t' '{ printf "  %-16s %s\n", $$1, $$2 }'
	@echo "variables: PYTHON=$(PYTHON) RUN=$(RUN) EXPERIMENT=$(EXPERIMENT) LIMIT=$(LIMIT) PROCESSES=$(PROCESSES) ARGS=\"$(ARGS)\""

install: $(STAMP) ## Install everything into .venv (the other targets do it when needed)

$(STAMP): pyproject.toml $(LOCK) scripts/install.sh
	@bash scripts/install.sh "$(PYTHON)" "$(VENV)" "$(LOCK)"
	@touch $@

reproduce-table: $(STAMP) ## Answer and tabulate EXPERIMENT into results/RUN; resumes where it stopped (LIMIT=40: few questions)
	$(MAIN) $(call WORD,experiment,$(EXPERIMENT)) $(call WORD,run,$(RUN)) $(if $(LIMIT),$(call WORD,limit,$(LIMIT))) \
		$(if $(MODEL),"model.path=$(MODEL)") $(if $(DATA),"data=$(DATA)") $(ARGS)

sweep: $(STAMP) ## Sweep: make sweep ARGS="compressor=random,st_simdiff budget.retention=0.3,0.5"
	$(BIN)/python -m stsimdiff -m $(call WORD,run,$(RUN)) $(if $(LIMIT),$(call WORD,limit,$(LIMIT))) $(ARGS)

compare: $(STAMP) ## Compare METHODS="st_simdiff fastv my_module.Mine" at RETENTION="0.1 0.3 0.5", with all and no video tokens
	$(MAIN) 'arms=["compressor=none,no_video","compressor=$(subst $(SPACE),$(COMMA),$(strip $(METHODS))) budget.retention=$(subst $(SPACE),$(COMMA),$(strip $(RETENTION)))"]' \
		$(call WORD,run,$(if $(filter file,$(origin RUN)),compare,$(RUN))) $(if $(LIMIT),$(call WORD,limit,$(LIMIT))) \
		$(if $(MODEL),"model.path=$(MODEL)") $(if $(DATA),"data=$(DATA)") $(ARGS)

efficiency: $(STAMP) ## Time and memory at 32, 64, 128 frames, arms in turn (MODEL, DATA: LLaVA-Video on VideoMME; ARGS="--repeats 3")
	$(BIN)/python -m stsimdiff profile $(call WORD,experiment,efficiency) $(call WORD,run,$(if $(filter file,$(origin RUN)),efficiency,$(RUN))) \
		$(if $(MODEL),model=llava_video model.pooling=bilinear "model.path=$(MODEL)" benchmark=videomme) \
		$(if $(DATA),"data=$(DATA)") $(ARGS)

doctor: $(STAMP) ## Prove that this machine can run EXPERIMENT (MODEL, DATA as for reproduce-table), before it runs
	$(BIN)/python -m stsimdiff doctor $(call WORD,experiment,$(EXPERIMENT)) $(if $(MODEL),"model.path=$(MODEL)") \
		$(if $(DATA),"data=$(DATA)") $(ARGS)

data: $(STAMP) ## Fetch and check BENCHMARK (videomme, mlvu, egoschema ...: docs/benchmarks.md); DATA=/path: only check what is there
	$(BIN)/python -m stsimdiff data $(if $(BENCHMARK),benchmark=$(BENCHMARK),--help) $(if $(DATA),"benchmark.data=$(DATA)") $(ARGS)

test: $(STAMP) ## Run the quick tests, in two processes (ARGS="-k name" for some of them)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-all: $(STAMP) ## Run all tests, as CI does (ARGS="tests/evaluate/test_sweeps.py" for some of them)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

docs: $(STAMP) ## Build the documentation as a site into build/site; any broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

mutation: $(STAMP) ## Change the code at random and see what the tests notice (SEED=7; ARGS="--count 40 --modules PATH")
	$(BIN)/python -m scripts.mutate --seed $(SEED) --workers 2 $(ARGS)

lint: $(STAMP) ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## Put the code into the format that lint asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

train-embedded: $(STAMP) ## Train the embedded model from nothing into OUT (about an hour on two idle cores)
	$(BIN)/python -m scripts.train_embedded --out $(OUT) $(ARGS)
	@echo "use it: make reproduce-table RUN=mine ARGS=\"model.path=$(OUT)\""

clean: ## Remove .venv and caches; results stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find configs scripts stsimdiff tasks tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
