# make demo: from nothing to a front, a picture and a verified file.   make test: static checks and fast tests.
VENV := .venv
PYTHON := python3.11
READY := $(VENV)/.ready
EVERY := $(VENV)/.every
DOCS := $(VENV)/.docs
BIN := $(VENV)/bin
STUDY := studies/digits.py:study
SITE := $(CURDIR)/build/site

.PHONY: demo test test-all check docs hooks clean

demo: $(READY)
	$(BIN)/slimfront run $(STUDY)
	$(BIN)/slimfront report $(STUDY)
	$(BIN)/slimfront export $(STUDY) --pick knee --replace
	@echo "picture: runs/digits/report/front.png   page: runs/digits/report/front.html   files: runs/digits/export/"

test: $(EVERY) check
	$(BIN)/pytest -n 2 -m "not slow"

test-all: $(EVERY) check
	$(BIN)/pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/vulture

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml --site-dir $(SITE)
	@echo "the documentation: $(SITE)/index.html"

hooks: $(READY)
	$(BIN)/pre-commit install

$(READY): pyproject.toml
	command -v $(PYTHON) >/dev/null || { echo "slimfront needs Python 3.11 or newer; name it: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[onnx,dev]"
	touch $@

$(EVERY): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[onnx,litert,micro,executorch,openvino,tasks,postgresql,distributed,docs,dev]"
	touch $@

$(DOCS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs
