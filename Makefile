# Every target sets up what it needs: a virtual environment in .venv, from PyPI.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: setup test chaos demo lint types coverage mutants docs clean simulate conformance

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; fi
	touch $(STAMP)

test: $(STAMP)
	$(BIN)/python -m pytest

demo: $(STAMP)
	$(BIN)/streamfleet demo

# Real servers, processes that are killed, a network that fails: `make chaos MINUTES=10 SERVERS=valkey-9.1`.
MINUTES ?= 10
SERVERS ?= valkey-9.1,redis-8.2
SHELLS ?= sync,asyncio,trio
chaos: $(STAMP)
	PYTHONPATH=tests/chaos $(BIN)/python -m campaign --server $(SERVERS) --shells $(SHELLS) \
	  --libraries redis,valkey --seconds $$(( $(MINUTES) * 60 )) $(if $(SEED),--seed $(SEED)) \
	  $(if $(REPORT),--report $(REPORT))

# A whole fleet on a virtual clock: `make simulate SEEDS=2000`, `SEED=1234` for one world and its story. Exits
# with 1 when an invariant was violated. `MODE=liveness`: all faults stop while much is left to do. `WITHOUT=fence`
# takes a safeguard away, and exits with 1 when no invariant was violated within the stated number of seeds.
simulate: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FIRST),--first $(FIRST)) \
	  $(if $(SEED),--seed $(SEED)) $(if $(WITHOUT),--without $(WITHOUT)) $(if $(PROFILE),--profile $(PROFILE)) \
	  $(if $(MODE),--mode $(MODE))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# How much of the public interface type checkers know without guessing; a report, not a gate.
types: $(STAMP)
	PYTHONPATH=drivers:. $(BIN)/pyright --pythonpath $(BIN)/python --ignoreexternal --verifytypes streamfleet

# The core by its own tests: every module at 95 % of its branches or more.
coverage: $(STAMP)
	COVERAGE_FILE=.coverage.core $(BIN)/coverage run --source=streamfleet_core -m pytest tests/core
	COVERAGE_FILE=.coverage.core $(BIN)/coverage report --show-missing --skip-covered --fail-under=95

# Changes to the core that its own tests do not notice: `make mutants MODULES='settling publishing'`, or all of it
# (hours). Goes on where the last run stopped; docs/explanation/mutants.md says what was found.
JOBS ?= 1
mutants: $(STAMP)
	$(BIN)/mutmut run --max-children $(JOBS) $(foreach module,$(MODULES),'streamfleet_core.$(module).*')
	$(BIN)/mutmut results | grep -v ': not checked$$' || true

# Speed and cost of all shells, side by side with a bare socket; one and a half minutes to six. BENCH=--quick for a first
# impression in one, BENCH="--shells threads" for one shell.
bench: $(STAMP)
	$(BIN)/python -m streamfleet.bench $(BENCH)

# Pages that are made from the code. A test fails while one of them is out of date.
docs: $(STAMP)
	$(BIN)/python docs/make_state.py docs/reference/state.md
	$(BIN)/python docs/make_faults.py docs/explanation/faults.md
	$(BIN)/python docs/make_support.py

# The conformance suite over every shell, driver and server that is here; writes docs/reference/support.md.
conformance: $(STAMP)
	$(BIN)/python docs/make_support.py run

clean:
	rm -rf $(VENV) dist build mutants
