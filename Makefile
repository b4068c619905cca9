# make test    its own virtual environment, the tested versions, the tests
# make check   ruff, format and types: reports, changes nothing
# make format  rewrites
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install test slow check format
install: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: install
	$(BIN)/python -m pytest $(ARGS)

slow: install
	$(BIN)/python -m pytest -m slow $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sae_posttrain

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
