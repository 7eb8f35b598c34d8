# Everything a person runs. `make help` lists it. Works from a bare clone with python3 (its venv module) and make.
PYTHON ?= python3
VENV ?= .venv
LAB_FLAGS ?=
NOTEBOOKS ?=
OUT ?=
SUBMISSIONS ?= submissions
MINUTES ?= 90

FIRST := notebooks/00_start_here.ipynb

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SETTINGS := $(VENV)/share/jupyter/lab/settings
SAY := @printf '\n== %s\n'

.DEFAULT_GOAL := help
.PHONY: help install install-test lab test lint format notebooks gpu-notebooks gpu-records status check-exercises student grade tables diagrams site chromium clean

help:
	@echo 'make install          make $(VENV) and install the course into it'
	@echo 'make lab              install, then open JupyterLab on the first notebook'
	@echo 'make test             install, then run everything that CI runs'
	@echo
	@echo 'make format           format code and notebooks'
	@echo 'make lint             check code and notebooks without running them'
	@echo 'make notebooks        run the notebooks in place, record seconds and memory'
	@echo 'make gpu-notebooks    run copies of them on a GPU machine into build/gpu-notebooks, record seconds and memory'
	@echo 'make gpu-records      measure everything on a GPU machine, correctness first (MINUTES=90)'
	@echo 'make check-exercises  run every exercise as shipped, solved, and with each wrong answer'
	@echo 'make tables           write the tables of the pages from the measurements'
	@echo 'make diagrams         draw the diagrams of the guides for the site, after one has changed'
	@echo 'make site             make the notebooks and guides into web pages: build/site/index.html'
	@echo 'make status           write what each notebook took into its head and the readmes, and show it'
	@echo 'make student          write the course without its answers into student (or OUT=folder)'
	@echo 'make grade            judge the notebooks that students handed in: submissions/<student>/<notebook>.ipynb'
	@echo 'make clean            remove what tests and tools leave behind (not $(VENV))'
	@echo
	@echo 'PYTHON=python3.12     another Python (3.10 to 3.13) to make $(VENV) from'
	@echo 'LAB_FLAGS=...         flags for JupyterLab, such as --no-browser or --port=9000'
	@echo 'NOTEBOOKS="00 01"     only these, for notebooks, gpu-notebooks, check-exercises and grade'

install: $(VENV)/.installed-course

install-test: $(VENV)/.installed-test

$(VENV)/.created:
	$(SAY) 'Making $(VENV) from $(PYTHON)'
	@command -v $(PYTHON) >/dev/null || { echo 'There is no $(PYTHON) here. Install Python 3.10 to 3.13, or say which: make PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "The course needs Python 3.10 to 3.13, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Say which to take: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) comes without its venv module. On Debian and Ubuntu: sudo apt install python3-venv'; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp is younger than what it was made from, so a second run installs nothing.
$(VENV)/.installed-course: $(VENV)/.created pyproject.toml constraints.txt scripts/jupyterlab_overrides.json
	$(SAY) 'Installing the course (minutes the first time; torch is the large part)'
	@$(PIP) install --quiet -c constraints.txt -e '.[course]'
	@mkdir -p $(SETTINGS) && cp scripts/jupyterlab_overrides.json $(SETTINGS)/overrides.json
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-course
	$(SAY) 'Installing what the tests need'
	@$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@$(PIP) install --quiet -c constraints.txt -e '.[peers]' || \
		{ test -z "$$CI" && echo 'hnswlib needs a C++ compiler and did not build: the tests that compare with it are skipped.'; }
	@touch $@

$(VENV)/.installed-site: $(VENV)/.installed-course
	$(SAY) 'Installing what makes the pages'
	@$(PIP) install --quiet -c constraints.txt -e '.[site]'
	@touch $@

lab: install
	$(SAY) 'Opening JupyterLab; stop it with Ctrl-C'
	@$(BIN)/jupyter lab --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/$(FIRST) $(LAB_FLAGS)

test: install-test chromium
	@$(BIN)/python scripts/run_tests.py

chromium:
	$(SAY) 'Looking for Chromium, which the browser test drives'
	@scripts/install_chromium.sh

lint: install-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m course.notebooks lint

format: install-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python -m course.notebooks format

notebooks: install-test
	@$(BIN)/python -m course.notebooks execute $(NOTEBOOKS)
	@$(BIN)/python -m course.notebooks status

gpu-notebooks: install
	@$(BIN)/python -m course.notebooks measure $(NOTEBOOKS) $(if $(OUT),--out '$(OUT)')

gpu-records: install-test
	@$(BIN)/python benchmarks/record_all.py --minutes '$(MINUTES)' $(if $(OUT),--out '$(OUT)')

check-exercises: install-test
	@$(BIN)/python -m course.notebooks check-exercises $(NOTEBOOKS)

status: install
	@$(BIN)/python -m course.notebooks status

student: install
	@$(BIN)/python -m course.notebooks student $(if $(OUT),--out '$(OUT)')

grade: install
	@$(BIN)/python -m course.notebooks grade $(NOTEBOOKS) --submissions '$(SUBMISSIONS)'

tables: install
	@$(BIN)/python scripts/tables.py

diagrams: install-test chromium
	@$(BIN)/python scripts/draw_diagrams.py

site: $(VENV)/.installed-site
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -c site -d build/site-doctrees . build/site
	@echo 'Open build/site/index.html'

clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
