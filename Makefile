# `make help` lists the targets. Each of them makes the environment in .venv first, if it is missing or out of date.

PYTHON ?= $(firstword $(shell command -v python3.11) python3)
# Another one, for `make test-py312`.
PYTHON312 ?= python3.12
VENV ?= .venv
# Versions of everything, by that of Python: Megatron-Core 0.19 needs 3.12.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints%s.txt" % ("-py312" if sys.version_info >= (3, 12) else ""))')
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python -m
# More settings for `make quickstart`, e.g. OVERRIDES="stages.joint.alpha=0.5 run.dir=runs/half".
OVERRIDES ?=
# More arguments for pytest, e.g. ARGUMENTS="-k noise".
ARGUMENTS ?=
# Test processes side by side. `tests/balance.py` says what each of them runs.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help environment quickstart instruct vision drafter check docs format test test-all test-py312 clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

environment: $(STAMP) ## make the environment in .venv

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo 'Installing into $(VENV): about three minutes.'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) --editable '.[dev]'
	@# On all cores, where pip would use one. Some packages ship templates that are no Python: that is no failure.
	@$(RUN) compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

quickstart: $(STAMP) ## prepare a corpus, train both stages on the CPU, and fine-tune the model on questions, in a quarter of an hour
	@PATH="$(abspath $(VENV))/bin:$$PATH" launch/quickstart.sh $(OVERRIDES)

instruct: $(STAMP) ## fine-tune the result of quickstart, or BASE=RUN, on questions, and ask held-out ones in every mode
	@PATH="$(abspath $(VENV))/bin:$$PATH" launch/instruct.sh $(OVERRIDES)

vision: $(STAMP) ## train a tiny vision-language model on drawn pictures, and ask held-out questions in every mode (docs/vision.md)
	@PATH="$(abspath $(VENV))/bin:$$PATH" launch/vision.sh $(OVERRIDES)

drafter: $(STAMP) ## train the drafter adapter on the result of quickstart and show its gain, in about three minutes
	@PATH="$(abspath $(VENV))/bin:$$PATH" launch/drafter.sh $(OVERRIDES)

check: $(STAMP) docs ## formatting, linters, type checker, documentation site
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(VENV)/bin/shellcheck -x launch/*.sh launch/*.sbatch .ci/run

docs: $(STAMP) ## build the documentation site in build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

format: $(STAMP) ## write the formatting, and what the linter can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

test: $(STAMP) ## the tests that take seconds each
	$(RUN) pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long" $(ARGUMENTS)

test-all: $(STAMP) ## every test
	$(RUN) pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGUMENTS)

test-py312: ## those of `test` on Python 3.12, with Megatron-Core 0.19 and torch 2.11, in .venv-py312
	$(MAKE) test PYTHON=$(PYTHON312) VENV=.venv-py312

clean: ## remove the environments and everything built; data/ and runs/ stay
	rm -rf $(VENV) .venv-py312 build dist .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
