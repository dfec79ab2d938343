# Everything happens in .venv; every target makes it first. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= 5
FUZZ ?= 2000
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format samples fuzz bench docs guests clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## Make the virtual environment and install what is needed

$(READY): pyproject.toml scripts/system-packages
	scripts/system-packages
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(READY) ## The sample kernel's whole way, then Debian's kernel if it can be fetched
	scripts/demo

test: $(READY) guests ## All tests; those that need what this machine lacks are skipped and say so
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

check: $(READY) ## Format, lint, types, layers, and generated documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m bt.docs --check

format: $(READY) ## Put the source into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

samples: $(READY) ## Rebuild the sample kernels, byte for byte
	$(MAKE) -C samples

fuzz: $(READY) ## Hostile files and guests, for longer than `make test` gives them (FUZZ=2000 files for each parser)
	FUZZ_EXAMPLES=$(FUZZ) $(BIN)/python -m pytest -n auto -m 'slow or not slow' tests/fuzz $(PYTEST_ARGS)

bench: $(READY) guests ## Boots beside QEMU (RUN=5 of each)
	$(BIN)/retrap bench boot --runs $(RUN)

docs: $(READY) ## Print the generated pages and build the site
	$(BIN)/python -m bt.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

guests: $(READY) ## Fetch Debian's kernel and the schema of SARIF, unless they are there or cannot be had
	@scripts/fetch-guests
	@scripts/fetch-sarif-schema

clean: ## Remove what was built (not the virtual environment)
	rm -rf build dist site out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
