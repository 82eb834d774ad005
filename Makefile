# On a machine with nothing but Python (3.10 or newer) and make: `make test` makes the environment, installs and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install test quick slow durations lint types format docs golden demo torture environments clean

# The stamp says that the package is installed as these files describe it.
$(VENV)/installed: pyproject.toml hatch_build.py nnssl_trainers.pth
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

install: $(VENV)/installed

# Two processes of one thread each; idle threads of nnU-Net's commands, which take all cores, should sleep.
test: install lint types
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# While you work: the cheapest tests of every file.
quick: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist loadfile --quick

# More of the same: further methods, longer trainings.
slow: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 -m slow

# The seconds by which `make quick` chooses (tests/seconds.json); run it on a quiet machine.
durations: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations-to-file

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of docs/ as a site; a broken link is an error. Open build/site/index.html.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Renews the record of what the package does (tests/golden/recorded) and prints what moved. `make test` compares with it; a commit
# that renews it says in its message which lines moved and why.
golden: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden.record

# The whole job on drawn CTs, seven to nine minutes on two cores; the report is in demo/. For another method, and for
# several seeds: `make demo METHOD=pimpic SEEDS=3`, which leaves demo_pimpic/.
METHOD ?= vox2vec
SEEDS ?= 1
DEMO ?= demo$(patsubst %,_%,$(filter-out vox2vec,$(METHOD)))
demo: install
	@$(BIN)/nnssl_demo -o $(DEMO) -m $(METHOD) -seeds $(SEEDS)

# Real commands, killed at random moments and typed again, some twenty minutes on two cores; prints a table.
torture: install
	$(BIN)/python -m tests.torture -kills 50 -seed 0

# Wheel and source archive, and the wheel in bare environments of Python 3.10 and 3.13 with the oldest and the newest dependencies:
# about an hour, and up to 7 GB at a time. `uv` finds the interpreters, or gets them.
environments: install
	$(BIN)/python -m pip install --quiet uv twine
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.environments

clean:
	rm -rf $(VENV) environments .mypy_cache .pytest_cache .ruff_cache build dist
