# Every target sets up what it needs: .venv with the pinned versions, once.
# demo, test and check are the three that matter; the others serve maintainers.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FILES := backend/src test docs vendor

.PHONY: demo test check fmt docs tiny-model test-oldest clean

demo: $(STAMP)
	$(BIN)/hildanext demo

test: $(STAMP)
	$(BIN)/python test/run_tests.py

check: $(STAMP)
	$(BIN)/ruff format --config backend/pyproject.toml --check $(FILES)
	$(BIN)/ruff check --config backend/pyproject.toml $(FILES)
	$(BIN)/mypy --config-file backend/pyproject.toml backend/src/hildanext
	$(BIN)/python test/run_tests.py test/guards

fmt: $(STAMP)
	$(BIN)/ruff format --config backend/pyproject.toml $(FILES)
	$(BIN)/ruff check --config backend/pyproject.toml --fix $(FILES)

$(STAMP): backend/pyproject.toml backend/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint backend/constraints.txt --editable "backend[dev]"
	touch $(STAMP)
