# The commands a person types. Each makes its environment in .venv first and is quick the second time.
# `make PYTHON=python3.12 test` chooses the interpreter of a new .venv; remove .venv to choose again.

PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done), \
  $(error Python 3.11 or newer was not found; name it: make PYTHON=/path/to/python ...))
BIN := .venv/bin
RESULTS := nbs/studies/results
NOTEBOOKS = $(shell find nbs -name '*.ipynb' -not -path '*/[._]*' | sort)
RUN_NOTEBOOKS = OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore VQVAE_STATIC=1 $(BIN)/jupyter nbconvert --log-level WARN \
  --to notebook --execute --inplace --ExecutePreprocessor.store_widget_state=False
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help study studies test test-fast test-notebooks test-python test-install export page lint lab site check bench notebooks \
  recording readme

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

study: .venv/core.stamp ## the main job: 256 codes with customary settings and with three lines more, print the table, write CSV and figure
	$(BIN)/vqvae study run first-look

studies: .venv/core.stamp ## every study of the book with its time; says which committed numbers moved
	@bad=; times=; \
	for name in $$($(BIN)/vqvae study list | awk 'NR > 1 {print $$1}'); do \
	  start=$$(date +%s); \
	  $(BIN)/vqvae study run $$name && $(BIN)/vqvae study compare $$name $(RESULTS)/$$name.csv || bad="$$bad $$name"; \
	  times="$$times $$name:$$(( ($$(date +%s) - start) / 60 ))min"; \
	done; echo; $(BIN)/vqvae study list || exit 1; echo "Time:$$times"; \
	if [ -z "$$bad" ]; then echo 'Every committed number is inside its interval.'; exit 0; fi; \
	echo "Failed, or numbers moved:$$bad. The reasons stand above. To accept the new numbers of a study:"; \
	for name in $$bad; do echo "  vqvae study run $$name --save $(RESULTS)/$$name.csv"; done; exit 1

test: test-notebooks test-python ## all tests: every notebook against the exported package, then tests/

test-notebooks: .venv/dev.stamp
	$(BIN)/python tools/export.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/test_notebooks.py

test-python: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-fast: .venv/dev.stamp ## tests/ without what is marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow'

test-install: .venv/dev.stamp ## the wheel and each extra alone in new environments; minutes, needs the package index
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m network

export: .venv/dev.stamp ## the package from the notebooks, with what stands behind the arguments in its docstrings
	$(BIN)/python tools/export.py

page: .venv/dev.stamp ## one notebook: export, run, clean, render: make page NB=nbs/quantizers/04_vq.ipynb
	@test -f '$(NB)' || { echo 'name a notebook: make page NB=nbs/quantizers/04_vq.ipynb'; exit 2; }
	$(BIN)/python tools/export.py
	$(RUN_NOTEBOOKS) '$(NB)'
	$(BIN)/nbdev_clean --fname '$(NB)'
	OMP_NUM_THREADS=1 $(BIN)/python tools/build_site.py '$(NB)'

lint: .venv/dev.stamp ## style and types, nothing is changed
	$(BIN)/ruff check
	@if $(BIN)/pyright --version > /dev/null 2>&1; then echo $(BIN)/pyright && $(BIN)/pyright; \
	else echo 'types are not checked: pyright cannot be installed here (it needs the npm registry once)'; fi

lab: .venv/dev.stamp ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir nbs

site: .venv/dev.stamp ## the documentation site in _docs/, with Quarto where it is installed, else with pandoc
	OMP_NUM_THREADS=1 $(BIN)/python tools/build_site.py

check: lint ## style, types; notebooks clean, package and README in sync with them, nothing untracked or stale
	$(BIN)/nbdev_clean
	$(BIN)/python tools/export.py
	$(BIN)/python tools/check.py

bench: .venv/dev.stamp ## speed and memory of search and of a training step; frames of a drag in an explorer
	$(BIN)/python tests/bench.py

notebooks: .venv/dev.stamp ## run every notebook again and store its outputs
	$(BIN)/python tools/export.py
	$(RUN_NOTEBOOKS) $(NOTEBOOKS)
	$(BIN)/nbdev_clean

recording: .venv/dev.stamp ## the trainings that the collapse explorer plays back
	$(BIN)/python -c "from vqvae.explorers.collapse import record_collapse; record_collapse('vqvae/explorers/collapse.json')"

readme: .venv/dev.stamp ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/core.stamp: EXTRAS =
.venv/dev.stamp: EXTRAS = [dev]
.venv/core.stamp .venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/pip
	@echo 'Installing vqvae$(EXTRAS) into .venv: some minutes the first time'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(EXTRAS)'
	@touch $@
