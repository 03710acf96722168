# `make demo`, `make test`, and `make gpu` where there is a GPU: each sets everything up from nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test drills demo gpu lint versions help

help:
	@echo "make demo   the whole story on a corpus it makes itself (8 to 13 minutes on 2 CPU cores)"
	@echo "make test   the tests, but for the drills"
	@echo "make drills  the tests of minutes: the whole demo, kills, jobs on a cluster, damage"
	@echo "make gpu    what works on this machine's GPUs, in about 10 minutes (ARGS='--minutes 30', ARGS=--help)"
	@echo "make lint   style and types"
	@echo "make versions   a part of the tests with the lowest, pinned and newest packages, on each Python that is here"

# On a CPU-only Linux machine PyPI's torch brings the CUDA packages along; README.md says how to avoid them.
.venv/.installed: setup.cfg setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

drills: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m slow

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: .venv/.installed
	$(BIN)/python tools/demo.py

gpu: .venv/.installed
	$(BIN)/python tools/gpu.py $(ARGS)

versions:
	PYTHONPATH=. $(PYTHON) tools/try_versions.py
