# Bare `make` lists the targets. Each sets up .venv by itself when it is missing or out of date; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
UV_VERSION := 0.13.8
PORT ?= 5000

.PHONY: help sweep test check docs ui chaos cluster-test lock
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:
	@echo "make sweep         Sets up .venv, then runs 24 trials on real images that come with scikit-learn, in one to two minutes."
	@echo "make test          Sets up .venv, then runs all tests, in about half an hour."
	@echo "make check         Checks style and types."
	@echo "make ui            Shows the sweeps of results/ in MLflow. PORT=5050 chooses another port."
	@echo "make docs          Builds the documentation as web pages."
	@echo "make cluster-test  Tests sweeps on clusters of several machines, which are processes here, in a quarter of an hour."
	@echo "make chaos         Kills sweeps 20 times and compares what they go on to with undisturbed ones, in a quarter of an hour."
	@echo "make lock          Pins every dependency anew in requirements.lock."
	@echo "All other work is done by .venv/bin/tailtune, which lists its verbs."

sweep: $(READY)
	$(VENV)/bin/tailtune sweep

test: $(READY)
	$(RUN) tests/run.py

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The documentation as web pages. A warning, such as a broken internal link, is an error; no network is needed.
docs: $(READY)
	$(RUN) docs/generate_reference.py
	$(RUN) -m sphinx -q -W --keep-going -n -b html -d dist/docs.cache docs dist/docs
	@echo "open dist/docs/index.html"

ui: $(READY)
	$(VENV)/bin/tailtune ui --port $(PORT)

# A campaign of about a quarter of an hour: sweeps are killed 20 times, resumed, and compared with undisturbed ones.
chaos: $(READY)
	$(RUN) -m benchmarks.chaos

# Sweeps on clusters of several machines, which are processes here, and MLflow's servers: a quarter of an hour. Needs root, util-linux,
# openssh-server, rsync, iproute2, postgresql and curl; a test that lacks one is skipped with the reason.
cluster-test: $(READY)
	$(RUN) -m pytest tests/cluster -rs

# Pins every dependency, with hashes and without an index address.
lock: $(READY)
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --extra dev --extra docs --extra server --extra aws --extra gcp --extra onnx --extra backbones pyproject.toml --output-file requirements.lock

# Byte code is compiled while installing: without it every Ray worker would spend about ten seconds on importing torch.
$(READY): requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	    f"tailtune needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is {v.major}.{v.minor}; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "could not create $(VENV); on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(VENV)/bin/uv --version 2>/dev/null | grep -q "^uv $(UV_VERSION)" || \
	    $(RUN) -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip sync --compile-bytecode requirements.lock
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
