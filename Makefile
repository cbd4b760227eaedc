# make run    caption a photograph and ask about it, offline, with the embedded model
# make test   the tests
# make lint   ruff and mypy
# The first call installs everything into .venv: some minutes, and some gigabytes for torch. PYTHON is 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint clean

run: .venv/installed
	$(BIN)/vision-lm caption demo/examples/cat.jpg --length short
	$(BIN)/vision-lm ask demo/examples/cat.jpg "Is there a dog?"

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv

# One stamp for each set of extras, renewed when pyproject.toml changes.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-%: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@
