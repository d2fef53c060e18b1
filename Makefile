# Everything is made from Python >= 3.10, git, make and a network; nothing outside this folder is changed.
# PYTHON chooses the interpreter that .venv is made from, PROFILE which runs `make repro` repeats.
PYTHON ?= python3
PROFILE ?= quick
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count()))')

UV_VERSION := 0.13.9
VENV := .venv
# The stamp is the last file a build writes: a build that was killed has none, and starts afresh.
READY := $(VENV)/.ready
# Programs and notebook kernels come from .venv, whatever the user's own PATH and kernels hold.
RUN = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" JUPYTER_PREFER_ENV_PATH=1 DVC_NO_ANALYTICS=1 $(VENV)/bin/python -m
unexport PYTHONPATH PYTHONHOME JUPYTER_PATH

PIPELINE_quick := dvc.yaml
PIPELINE_subset := profiles/subset/dvc.yaml
PIPELINE_commands := profiles/commands/dvc.yaml
PIPELINE_paper := profiles/paper/dvc.yaml
PIPELINE_scan := profiles/scan/dvc.yaml
PIPELINE_search := profiles/search/dvc.yaml
PIPELINE_beyond := profiles/beyond/dvc.yaml
FIGURES = $(if $(filter scan,$(PROFILE)),notebooks/05_scan.ipynb tmp/figures.ipynb -p read ../results/scan/scan.json -p report ..,\
	$(if $(filter beyond,$(PROFILE)),notebooks/06_beyond.ipynb tmp/figures.ipynb -p out ..,\
	notebooks/04_paper.ipynb tmp/figures.ipynb -p params ../$(dir $(PIPELINE_$(PROFILE)))params.yaml -p out ..))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env repro peers test figures readme lock clean profile

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

env: $(READY)  ## make .venv from the lock, requirements.txt

# The quick profile's runs are short and take one thread each: as many go side by side as there are cores, four at most.
# What they leave is for the last line, and would all be done by it alone.
repro: profile $(READY)  ## repeat the runs, tables and figures: PROFILE=quick (default), subset, commands, beyond, paper, scan, search
ifeq ($(PROFILE),quick)
	$(RUN) dvc repro corpus
	$(RUN) dvc status dvc.yaml | sed -n 's/^\(train@.*\):$$/\1/p' | \
		xargs -n 1 -P $(JOBS) env $(RUN) dvc repro --single-item
endif
	$(RUN) dvc repro $(PIPELINE_$(PROFILE))

# mamba-ssm is built without CUDA: only its plain PyTorch scan is wanted here.
peers: $(READY)  ## add to .venv the packages that PROFILE=scan compares with: mambapy, transformers, mamba-ssm
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(VENV)/bin/uv pip install --python $(VENV)/bin/python \
		--no-build-isolation-package mamba-ssm --constraints requirements.txt 'mambapy==1.2.0' 'transformers==5.23.0' 'mamba-ssm==2.3.2.post1'

test: $(READY)  ## run the tests and the notebooks
	$(RUN) pytest --nbval --nbval-current-env --durations=10 -q tests $(wildcard notebooks)

figures: profile $(READY)  ## draw the tables and figures again from the committed results, as PROFILE says
	@[ '$(PROFILE)' != search ] || { echo "error: profile search has no figures; its table is results/search/trials.md" >&2; exit 2; }
	mkdir -p tmp
	$(RUN) papermill --kernel python3 --no-progress-bar --cwd notebooks $(FIGURES)

readme: $(READY)  ## write the README's tables and numbers again from the committed results
	$(RUN) paper.pages README.md results/quick results/subset results/scan

lock:  ## resolve pyproject.toml into requirements.txt; UPGRADE=--upgrade takes newer releases
	@test -x $(VENV)/bin/uv || { $(NEW_VENV); }
	$(VENV)/bin/uv pip compile pyproject.toml --extra test --universal --python-version 3.10 $(UPGRADE) \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.txt

clean:  ## remove data, checkpoints and scratch; results, figures and .venv stay
	rm -rf data checkpoints tmp .pytest_cache .hypothesis build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

profile:
	@case '$(PROFILE)' in quick|subset|commands|paper|scan|search|beyond) ;; *) \
		echo "error: no profile is called '$(PROFILE)'; choose PROFILE=quick, subset, commands, paper, scan, search or beyond" >&2; exit 2 ;; esac

define NEW_VENV
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo "error: '$(PYTHON)' is not Python 3.10 or newer;" \
	"name one that is, as in: make env PYTHON=python3.12" >&2; exit 2; }; \
$(PYTHON) -c 'import ensurepip, venv' || { \
	echo "error: '$(PYTHON)' comes without venv; install it (on Debian: python3-venv)" >&2; exit 2; }; \
$(PYTHON) -m venv --clear $(VENV) && \
$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: uv==$(UV_VERSION)
endef

# The lock holds setuptools too, and constrains the one package that must be built. The .pth line is
# relative to site-packages, so that the folder may be moved.
$(READY): pyproject.toml requirements.txt
	@rm -f $(READY)
	@echo "making $(VENV): about 5.5 GB, most of it the CUDA libraries that torch's Linux build brings"
	@$(NEW_VENV)
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --require-hashes \
		--build-constraints requirements.txt -r requirements.txt
	@echo ../../../.. > "$$($(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/kwslib.pth"
	@touch $(READY)
