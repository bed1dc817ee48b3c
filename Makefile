VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv

PYTHON ?= python3

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' || { echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check uv==0.13.8

$(VENV)/.ready: requirements.txt $(VENV)/bin/uv
	$(UV) pip install -q --system-certs --python $(PY) --no-deps --compile-bytecode -r requirements.txt
	touch $@

.PHONY: setup
setup: $(VENV)/.ready

DATASET ?=
FLAGS = $(if $(DATASET),--dataset $(DATASET)) $(if $(DEFENCES),--defences "$(DEFENCES)") $(if $(ATTACKS),--attacks "$(ATTACKS)") \
  $(if $(N),--n $(N)) $(if $(FIRST),--first $(FIRST)) $(if $(NORM),--norm $(NORM)) $(if $(EPS),--eps $(EPS)) $(if $(SEED),--seed $(SEED)) \
  $(if $(BUDGET),--budget $(BUDGET)) $(if $(DEVICE),--device $(DEVICE)) $(if $(PLAN),--plan $(PLAN)) $(if $(OUT),--out $(OUT))

.PHONY: bench test report train check perf
bench: setup
	@$(PY) -m bench.run $(FLAGS)

JOBS ?= 2
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile

report: setup
	@$(PY) -m bench.report $(if $(OUT),--out $(OUT))

train: setup
	$(PY) -m baselines.train --dataset $(or $(DATASET),digits) $(if $(DEVICE),--device $(DEVICE))
	$(PY) -m carso.train --dataset $(or $(DATASET),digits) $(if $(DEVICE),--device $(DEVICE))
	$(PY) -m carso.train --dataset $(or $(DATASET),digits) --kind vae $(if $(DEVICE),--device $(DEVICE))

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

perf: setup
	OMP_NUM_THREADS=1 $(PY) -m benchmarks
