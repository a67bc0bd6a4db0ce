# Everything starts here: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The caller's locale may not be installed; Python could then not start from a path beyond ASCII.
export LC_ALL := C.UTF-8

# Tests start some hundred commands; without the compiled files each would compile its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-full bench lint format docs lock clean

install: $(VENV)/.installed

# The lock pins every package by hash; the project itself is installed as it stands here.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pgscatter needs Python 3.11 or newer; say which with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	$(BIN)/python -m deploy.demo $(if $(SMOKE),--smoke)

# Three processes share the files of tests, in the order of the alphabet, so that the long ones come first: one
# of them waits at any time for a server or a limit.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# All but the few that are marked `full`: make test ARGS="tests/unit -k merge".
test: install
	$(PYTEST) -m "not full" $(ARGS)

# Every test: also all faults and all scenarios of the bench, each with servers of its own.
test-full: install
	$(PYTEST) $(ARGS)

# Every scenario, into bench-results/results.md: make bench ARGS="--quick".
bench: install
	$(BIN)/pgscatter bench all $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rewrites the tables that are made from the code.
docs: install
	$(BIN)/python -m router.settings_docs docs/settings.md
	$(BIN)/python -m router.model_service.limits_docs docs/models.md

# Every extra but models-torch.
LOCKED := cluster models text load bench test dev

# Needs uv: rewrites requirements.lock from pyproject.toml, for every platform and Python from 3.11 on.
lock:
	uv pip compile --universal --python-version 3.11 $(addprefix --extra ,$(LOCKED)) --generate-hashes \
		--no-annotate --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
