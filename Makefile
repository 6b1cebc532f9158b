# make demo: from nothing to a front, a picture and a verified file.   make test: every check.
VENV := .venv
PYTHON := python3.11
READY := $(VENV)/.ready
BIN := $(VENV)/bin
STUDY := studies/digits.py:study

.PHONY: demo test test-all check clean

demo: $(READY)
	$(BIN)/slimfront run $(STUDY)
	$(BIN)/slimfront report $(STUDY)
	$(BIN)/slimfront export $(STUDY) --pick knee --replace
	@echo "picture: runs/digits/report/front.png   page: runs/digits/report/front.html   files: runs/digits/export/"

test: $(READY) check
	$(BIN)/pytest -m "not slow"

test-all: $(READY) check
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/vulture

$(READY): pyproject.toml
	command -v $(PYTHON) >/dev/null || { echo "slimfront needs Python 3.11 or newer; name it: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[onnx,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs
