# Everything sets itself up on a fresh machine: a virtual environment in .venv with the pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Your own results are another data set than the simulated one.
OUT ?= $(if $(SRC),demo_own,demo)
# Where real or simulated NetFabb results lie; without it the demo simulates parts of its own.
SRC ?=
# What PyTorch may use in `make numeric`: avx2 or default.
CAPABILITY ?= avx2
# The files that have tests of arithmetic: to import all others takes as long as many of these tests.
NUMERIC = $(shell grep --recursive --files-with-matches --include='test_*.py' mark.numeric tests)
# Platforms whose pins are checked: linux, macos, windows; all of them without a name.
PLATFORMS ?=

# What `make own_model` makes the package's own model from.
RUN ?=
DATA ?=

.PHONY: help demo test numeric slow lint format pins check_pins report_assets own_model benchmark clean

help: ## Say what can be made.
	@grep -E '^[a-z_]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed ## The main job end to end: results in, data set, a trained model. SRC=folder for your own results.
	$(BIN)/python -m tests.demo --out $(OUT) $(if $(SRC),--src $(SRC))

lint: $(VENV)/installed ## Style, types, and which package may import which.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers keep two cores busy: with threads of their own, arithmetic libraries would only wait for one another.
test numeric: export OMP_NUM_THREADS := 1

# Each of two workers begins with one half of the tests, so that tests of one module share what they stand on.
test: lint ## The whole fast test suite, and its arithmetic once more as other processors do it.
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'
	$(MAKE) numeric

numeric: $(VENV)/installed ## The tests of arithmetic as a processor without AVX-512 does it, if this one has it; CAPABILITY=default: without AVX.
	$(BIN)/python -m tests.fewer_instructions --if-fewer $(CAPABILITY) $(BIN)/python -m pytest -n 2 --dist worksteal -m 'numeric and not slow and not compiles' $(NUMERIC)

slow: $(VENV)/installed ## The tests that take minutes.
	$(BIN)/python -m pytest -m slow

format: $(VENV)/installed ## Lay the code out.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pins: $(VENV)/installed ## Pin all packages anew, for every platform at once; UPGRADE=--upgrade takes the newest.
	$(BIN)/python -m uv pip compile --universal --fork-strategy fewest --python-version 3.11 --extra dev --no-config \
	  --no-annotate --custom-compile-command 'make pins' --constraint tests/pinned_torch.txt $(UPGRADE) \
	  pyproject.toml --output-file constraints.txt

check_pins: $(VENV)/installed ## Do the pins resolve for a stranger, on Linux, macOS and Windows, Python 3.11 to 3.14?
	$(BIN)/python -m tests.check_pins --platforms '$(PLATFORMS)' --pip

report_assets: ## Bundle the JavaScript of viewer and report anew and lint the pages' own; needs node and npm, users don't.
	cd lpbf_data/viewer/assets && npm ci && npm run lint && npm run build
	cd lpbf_data/viewer/assets && node lint.mjs page ../../../flare_model/local_page/assets/page
	cd pipelines/report_assets && npm ci && npm run lint && npm run build

own_model: $(VENV)/installed ## Make the model that comes with the package. RUN=folder of a run, DATA=its data set.
	$(BIN)/python -m flare_model.release --checkpoint '$(RUN)' --data '$(DATA)'

benchmark: $(VENV)/installed ## Measure on this machine; results land in tests/benchmarks/results.
	$(BIN)/python -m tests.benchmarks.build

clean: ## Remove the virtual environment, demo folders and caches; runs and data sets stay.
	rm -rf $(VENV) demo demo_own build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
