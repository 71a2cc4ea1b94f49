# make demo and make test set up everything they need; see the README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TYPED := --jaxtyping-packages=interp,tasks,analyses,beartype.beartype
# Files of tests are dealt to two processes: most tests use one core.
PARALLEL := -n 2 --dist loadfile
DEMO_OUT ?= demo

.PHONY: demo test test-all check parity oracles bench docs clean

demo: $(VENV)/runtime
	$(BIN)/interp demo --out $(DEMO_OUT)

# Refused arguments must reach the project's own messages, so their tests run without run-time type checks.
test: $(VENV)/dev
	$(BIN)/python -m pytest $(PARALLEL) $(TYPED) -m "not slow and not refusal"
	$(BIN)/python -m pytest -m "not slow and refusal"

# Everything, in both environments: on the newest TransformerLens, and on the last that has its own HookedTransformer.
test-all: $(VENV)/dev .venv-parity/ready
	for python in $(BIN)/python .venv-parity/bin/python; do \
		$$python -m pytest $(PARALLEL) $(TYPED) -m "not refusal" && $$python -m pytest -m refusal || exit 1; \
	done

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules interp tasks analyses -q

# The last TransformerLens that has its own HookedTransformer, in an environment of its own.
parity: .venv-parity/ready
	.venv-parity/bin/python -m pytest -m parity

# How far every method is from the truth, on circuits whose every effect is known; fails if one is off.
oracles: $(VENV)/dev
	$(BIN)/python scripts/oracles.py

bench: $(VENV)/dev
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# Pages, API reference and notebooks; a warning is an error, and nothing is fetched.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is older: say make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch is installed first and by its exact version, so that nothing else chooses another build of it.
$(VENV)/runtime: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/runtime
	$(PIP) -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/docs: $(VENV)/dev
	$(PIP) -c constraints.txt -e ".[docs]"
	touch $@

.venv-parity/ready: pyproject.toml constraints.txt
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	grep -v '^transformer-lens==' constraints.txt > .venv-parity/constraints.txt
	.venv-parity/bin/python -m pip --disable-pip-version-check install --quiet -c .venv-parity/constraints.txt torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	.venv-parity/bin/python -m pip --disable-pip-version-check install --quiet -c .venv-parity/constraints.txt transformer-lens==3.9.0 -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-parity
