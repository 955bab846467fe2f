PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup run site test test-browser lab lint format notebooks teacher backbone student baseline
.DEFAULT_GOAL := help

help:
	@echo "make setup      create $(VENV) and install the package with its development tools"
	@echo "make run        run the notebooks; rendered pages, the student and a table go to runs/"
	@echo "make site       the README files and notebooks as web pages in runs/site/, explorers included"
	@echo "make test       unit tests and notebooks"
	@echo "make test-browser  the notebooks in JupyterLab and Chromium; screenshots go to runs/browser/"
	@echo "make lab        JupyterLab in notebooks/"
	@echo "make lint       ruff and codespell"
	@echo "make format     rewrite the code as ruff formats it"
	@echo "make teacher    train the embedded teacher from nothing into data/teacher (minutes on a GPU, hours without)"
	@echo "make backbone   train the embedded backbone into data/backbone (minutes on a GPU, an hour without)"
	@echo "make student    distil a student for longer than notebook 03 does, into data/student (over an hour)"
	@echo "make baseline   train the same student without a teacher, until it gains no more, into data/baseline"
	@echo "make notebooks  run the notebooks in place, outputs ready to commit"

setup: $(STAMP)

# Reinstalls only when pyproject.toml changed since the last installation that went through.
$(STAMP): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

# Jupyter and IPython write their settings and connection files inside the environment, so that neither
# reads from nor adds to the user's own.
run test notebooks: export JUPYTER_CONFIG_DIR  := $(CURDIR)/$(VENV)/jupyter/config
run test notebooks: export JUPYTER_DATA_DIR    := $(CURDIR)/$(VENV)/jupyter/data
run test notebooks: export JUPYTER_RUNTIME_DIR := $(CURDIR)/$(VENV)/jupyter/runtime
run test notebooks: export IPYTHONDIR          := $(CURDIR)/$(VENV)/ipython

# Notebook 01 ends with a checkpoint from the hub, if it may: hundreds of megabytes, for `make lab` alone.
run test notebooks: export HF_HUB_OFFLINE := 1

run: $(STAMP)
	@$(BIN)/python tools/run_notebooks.py --html runs

site: $(STAMP)
	@$(BIN)/python tools/website.py

notebooks: $(STAMP)
	@$(BIN)/python tools/run_notebooks.py

# The unit tests in two processes of one thread each, then the notebooks, which use every core.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile
	@$(BIN)/python -m pytest notebooks

# NOTEBOOKS=02 runs only those whose name contains it.
test-browser: $(STAMP)
	@$(BIN)/python -c "import playwright" 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[browser]'
	@NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m pytest -s -m browser tests/browser

lab: $(STAMP)
	@$(BIN)/python -m jupyterlab --ServerApp.root_dir=notebooks

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What ships in data/, from nothing; an interrupted training continues from its last checkpoint in runs/.
backbone: $(STAMP)
	$(BIN)/python -m gitdistill fit --config configs/backbone.yaml --ckpt_path last

teacher: $(STAMP)
	$(BIN)/python -m gitdistill fit --config configs/teacher_encoder.yaml --ckpt_path last
	$(BIN)/python -m gitdistill fit --config configs/teacher.yaml --ckpt_path last

student: $(STAMP)
	$(BIN)/python -m gitdistill fit --config configs/student.yaml --ckpt_path last

baseline: $(STAMP)
	$(BIN)/python -m gitdistill fit --config configs/baseline.yaml --ckpt_path last
