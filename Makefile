VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv

PYTHON ?= python3
JOBS ?= 2

# A flag of the sweep and its variable: `make bench N=100` is `carso-bench run --n 100`.
SWEEP_FLAGS := dataset defences attacks n first norm eps seed draws select batch queries budget device plan out
SWEEP_VARIABLES := $(shell echo $(SWEEP_FLAGS) | tr a-z A-Z)
PAIRS := $(join $(addsuffix :,$(SWEEP_VARIABLES)),$(SWEEP_FLAGS))
variable = $(firstword $(subst :, ,$(1)))
flag = $(lastword $(subst :, ,$(1)))
FLAGS = $(foreach pair,$(PAIRS),$(if $($(call variable,$(pair))),--$(call flag,$(pair)) "$($(call variable,$(pair)))")) $(ARGS)

# A mistyped variable must not start the default sweep.
KNOWN := $(SWEEP_VARIABLES) ARGS JOBS PYTHON VENV
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
UNKNOWN := $(firstword $(filter-out $(KNOWN) MAKEFLAGS,$(GIVEN)))
ifneq ($(UNKNOWN),)
$(error unknown variable $(UNKNOWN)$(shell $(PYTHON) -c 'import sys; from bench.errors import did_you_mean; print(did_you_mean(sys.argv[1], sys.argv[2:]))' $(UNKNOWN) $(KNOWN)))
endif

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' || { echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check uv==0.13.8

$(VENV)/.ready: requirements.txt pyproject.toml $(VENV)/bin/uv
	$(UV) pip install -q --system-certs --python $(PY) --no-deps --compile-bytecode -r requirements.txt
	$(UV) pip install -q --python $(PY) --no-deps --no-build-isolation --offline --editable .
	touch $@

.PHONY: setup bench test report train check perf docs
setup: $(VENV)/.ready

bench: setup
	@$(PY) -m bench.run $(FLAGS)

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

report: setup
	@$(PY) -m bench.report $(if $(OUT),--out "$(OUT)") $(ARGS)

TRAIN = --dataset $(or $(DATASET),digits) $(if $(DEVICE),--device $(DEVICE)) $(if $(SEED),--seed $(SEED)) $(ARGS)
train: setup
	$(PY) -m baselines.train $(TRAIN)
	$(PY) -m carso.train $(TRAIN)
	$(PY) -m carso.train $(TRAIN) --kind vae

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

perf: setup
	OMP_NUM_THREADS=1 $(PY) -m benchmarks

# The pages that are made from what is registered, and the site of all pages in site/.
docs: setup
	$(PY) -m bench.catalogue
	$(VENV)/bin/mkdocs build --quiet
