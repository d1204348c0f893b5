# polyak: `make demo` and `make test` each create what they need; the second run is quick.
#
#   PYTHON=python3.12      the interpreter for a new environment (3.11 to 3.13; found by itself otherwise)
#   VENV=.venv             where the environment lives
#   WORKERS=2              test processes
#   PYTEST_ARGS="-k kernel -x"   more arguments for pytest
#   BENCH=update BENCH_ARGS="--quick"    which bench (all of them otherwise), and its arguments
#   ONLY="9 24a"           rows or campaigns of `make torture`
#   MINUTES=30             how long `make torture` may take; what has no room in it is first the next time

VENV        ?= .venv
PYTHON      ?=
WORKERS     ?= 2
PYTEST_ARGS ?=
ONLY        ?=
MINUTES     ?= 30
BENCH       ?= all
BENCH_ARGS  ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# `pip install` of polyak runs without build isolation, so its build backend is pinned with the rest.
BUILD  := "hatchling>=1.27" "editables>=0.5" "setuptools>=70"

# The tests of what pyproject.toml calls the core.
OF_CORE := tests/averaging tests/files tests/transfer tests/dialects/test_other_names.py tests/dialects/test_keras_file.py \
  tests/dialects/test_diffusers.py tests/frameworks/test_torch_target.py \
  $(wildcard tests/test_*.py)

# Also set by tests/conftest.py; set here too for the doctests and the demo.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint format typecheck pytest coverage slow kill peers torture fuzz bench pins clean distclean

help: ## this list
	@echo "polyak: make TARGET"
	@grep -E '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sort | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## the main job on real data, end to end; leaves its files in ./polyak-demo/
	@$(BIN)/polyak demo

test: lint typecheck pytest ## everything that must hold: lint, types, tests, doctests

lint: $(VENV)/.test ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test ## ruff: repair what it can, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.test ## mypy --strict on src
	$(BIN)/mypy

pytest: $(VENV)/.test ## tests and doctests alone, without slow, kill and peers; Keras' own on its three backends
	$(PYTEST) $(PYTEST_ARGS)
	KERAS_BACKEND=jax $(PYTEST) tests/keras $(PYTEST_ARGS)
	KERAS_BACKEND=torch $(PYTEST) tests/keras $(PYTEST_ARGS)

coverage: $(VENV)/.test ## the lines and branches of the core that its own tests do not reach
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile $(OF_CORE) $(PYTEST_ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# pytest leaves with 5 where no test carries the mark; that is said, and is no failure.
slow kill: $(VENV)/.test
	@$(PYTEST) -m $@ $(PYTEST_ARGS) || { rc=$$?; test $$rc -eq 5 && echo "make $@: no test carries this mark"; }

slow: ## tests that take minutes
kill: ## tests that end processes in the middle of a write

# The tools run in an environment of their own, which sees the tests' one.
peers: $(VENV)/peers/.installed ## side by side with other libraries, which it installs; prints the figures as a table
	POLYAK_PEERS=1 $(VENV)/peers/bin/python -m pytest tests/peers -m "peers or not peers" $(PYTEST_ARGS)

torture: $(VENV)/.test ## the campaigns of docs/reliability.md with their full counts; writes that page (ONLY=9: one row)
	$(BIN)/python -m torture --minutes $(MINUTES) $(addprefix --only ,$(ONLY))

fuzz: $(VENV)/peers/.installed ## the readers under libFuzzer, which keeps what reaches new code (MINUTES=5); finds are left in build/finds
	$(VENV)/peers/bin/python -m torture._libfuzzer $$((60 * $(MINUTES)))

bench: $(VENV)/peers/.installed ## speed and memory beside other tools, as tables: all, or BENCH=update (docs/performance.md)
	$(BIN)/python -m bench $(BENCH) $(BENCH_ARGS)

# --- the environment -------------------------------------------------------------------------------------------------
# A stamp stands for an installed set of pins, so nothing is done twice. The test set holds the demo's.
# --no-deps: the pins are the whole set. tf_keras asks for `tensorflow`, which would lay the accelerator build over the
# CPU build of the same files.

$(VENV)/bin/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then exec "$$python" -m venv --clear $(VENV); fi; \
	done; \
	echo "make: no usable Python among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)." >&2; \
	echo "hint: install Python 3.11, 3.12 or 3.13 with its venv module, or name one: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(VENV)/.demo: $(VENV)/bin/python requirements/demo.txt pyproject.toml
	@echo "Installing what the demo needs into $(VENV) (the first run takes a minute or two) ..."
	@$(PIP) install --no-deps -r requirements/demo.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python requirements/demo.txt requirements/test.txt pyproject.toml
	@echo "Installing what the tests need into $(VENV) (the first run takes a minute or two) ..."
	@$(PIP) install --no-deps -r requirements/test.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.demo $@

$(VENV)/peers/.installed: $(VENV)/.test requirements/peers.txt
	@echo "Installing the tools to compare with into $(VENV)/peers ..."
	@$(BIN)/python -m venv --clear $(VENV)/peers
	@$(VENV)/peers/bin/python -c 'import pathlib, sys, sysconfig; place = sysconfig.get_paths()["purelib"]; \
	  pathlib.Path(place, "tests.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")' \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
	@$(VENV)/peers/bin/python -m pip --disable-pip-version-check --no-input -qq install --no-deps -r requirements/peers.txt
	@touch $@

# --- the pins --------------------------------------------------------------------------------------------------------
# Resolved from the extras of pyproject.toml in fresh environments; the demo's are held to the tests'.

pins: $(VENV)/bin/python ## resolve requirements/*.txt anew from pyproject.toml
	@$(call freeze,test,)
	@$(call freeze,demo,--constraint requirements/test.txt)
	@rm -rf build/pins

define freeze
echo "Resolving requirements/$(1).txt ..." && \
$(BIN)/python -m venv --clear build/pins && \
build/pins/bin/python -m pip --disable-pip-version-check --no-input -qq install --upgrade $(2) ".[$(1)]" $(BUILD) && \
build/pins/bin/python -m pip -qq --disable-pip-version-check freeze --all --exclude pip --exclude polyak > build/pins/frozen && \
build/pins/bin/python requirements/pin.py $(1) < build/pins/frozen > build/pins/$(1).txt && \
mv build/pins/$(1).txt requirements/$(1).txt
endef

clean: ## remove caches, builds and the demo's files
	rm -rf build dist polyak-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environment
	rm -rf $(VENV)
