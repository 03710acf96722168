# `make demo`, `make test`, and `make gpu` where there is a GPU: each sets up its environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quick test drills demo gpu lint versions help

help:
	@echo "make demo   data, six short runs, probes, an export, a report (8 to 13 minutes on 2 CPU cores)"
	@echo "make quick  tests of every package: at most 4 minutes on 2 CPU cores"
	@echo "make test   all tests except the drills (about 20 minutes)"
	@echo "make drills  long tests: the demo, killed processes, jobs on a simulated cluster, damaged files"
	@echo "make gpu    tests this machine's GPUs in about 10 minutes (ARGS='--minutes 30', ARGS=--help)"
	@echo "make lint   style and types"
	@echo "make versions   some tests with the lowest, pinned and newest packages, for each installed Python"

# On a CPU-only Linux machine PyPI's torch installs the CUDA packages; README.md explains how to avoid them.
.venv/.installed: setup.cfg setup.py constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Fast test files of every package, and of the whole-run tests: messages, two processes, resuming after a signal
QUICK := tests/test_config.py tests/test_docs.py tests/test_extending.py tests/test_house.py tests/masking \
	tests/commands tests/corpora tests/preview tests/study tests/tuning tests/benchmarks/test_benchmark.py::test_a_mistake_is_one_message \
	$(addprefix tests/conversion/test_,convert.py formats.py) \
	$(addprefix tests/data/test_,annotations.py decode.py index.py lists.py loader.py names.py order.py shards.py \
	synthetic.py transforms.py) \
	$(addprefix tests/evaluation/test_,figures.py intervals.py knn.py probe.py views.py) \
	$(addprefix tests/guidance/test_,passes.py relevance.py text_tower.py) \
	$(addprefix tests/models/test_,attention.py classifier.py patches.py pretraining.py vit.py) tests/objectives \
	tests/report/test_pictures.py \
	$(addprefix tests/runtime/test_,arrays.py files.py json_text.py launch.py seeding.py terminal.py) \
	$(addprefix tests/training/test_,inspect.py metrics.py module.py) \
	"tests/training/test_pretrain.py::test_a_run_says_what_it_does_and_no_more" \
	"tests/training/test_pretrain.py::test_a_signal_stops_with_a_checkpoint_and_the_requeue_code[2]"

quick: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" $(QUICK)

test: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" --durations 12

drills: .venv/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m slow --durations 12

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: .venv/.installed
	$(BIN)/python tools/demo.py

gpu: .venv/.installed
	$(BIN)/python tools/gpu.py $(ARGS)

versions:
	PYTHONPATH=. $(PYTHON) tools/try_versions.py $(ARGS)
