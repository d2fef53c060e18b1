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
# Where Python may keep no bytecode, each of the many processes of a profile or of the tests compiles torch anew: 3 s.
unexport PYTHONDONTWRITEBYTECODE
# A home that cannot be written has no place for uv's cache.
ifndef UV_CACHE_DIR
ifneq ($(shell test -w "$${XDG_CACHE_HOME:-$$HOME}" && echo yes),yes)
export UV_NO_CACHE := 1
endif
endif

PROFILES := quick subset long commands beyond paper scan search rates spot wake_words
PIPELINE = $(if $(filter quick,$(PROFILE)),dvc.yaml,profiles/$(PROFILE)/dvc.yaml)
# `make prove`: the commit whose code made the results, and the stages (default: all that are out of date).
BEFORE ?= HEAD
STAGES ?=

.DEFAULT_GOAL := help
# The notebook that `make figures` runs: of these profiles their own, of the others chapter 4.
NOTEBOOK_scan := 05_scan scan read=../results/scan/scan.json report=..
NOTEBOOK_beyond := 06_beyond subset out=..
NOTEBOOK_spot := 08_streams spot out=..
NOTEBOOK_wake_words := 07_wake_words spot out=..
NOTEBOOK = $(or $(NOTEBOOK_$(PROFILE)),04_paper $(PROFILE) out=..)

.NOTPARALLEL:
.PHONY: help env repro stale prove peers test torture lint figures pages page pipelines lock clean profile

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

env: $(READY)  ## make .venv from the lock, requirements.txt

# Stages of one thread that do not wait for each other, in groups that do: as many of a group go side by side as there are
# cores, four at most. What they leave is for the last line, which would do it all alone.
SIDE_quick := 'train'
SIDE_subset := 'train|again'
SIDE_long := 'train'
SIDE_commands := 'train'
SIDE_wake_words := 'unseen|words' 'takes'
CORPUS_wake_words := profiles/spot/dvc.yaml:corpus
# Their chapters also read what other profiles wrote, which is not repeated.
ONLY_spot := --single-item
ONLY_wake_words := --single-item
repro: profile $(READY)  ## repeat the runs, tables and figures, and report what was reproduced: PROFILE=quick (default), subset, …
	@$(foreach params,$(if $(filter quick,$(PROFILE)),params.yaml,$(wildcard profiles/$(PROFILE)/params.yaml)),$(RUN) paper.profile $(params))
ifdef SIDE_$(PROFILE)
	$(RUN) dvc repro $(or $(CORPUS_$(PROFILE)),$(PIPELINE):corpus)
	for group in $(SIDE_$(PROFILE)); do \
		$(RUN) dvc status $(PIPELINE) | sed -nE "s/^(.*:)?(($$group)(@[^:]*)?):$$/\2/p" | \
			xargs -I {} -P $(JOBS) env OMP_NUM_THREADS=1 $(RUN) dvc repro --single-item $(PIPELINE):{} || exit 1; \
	done
endif
	$(RUN) dvc repro $(ONLY_$(PROFILE)) $(PIPELINE)
	$(RUN) paper.reproduction $(PROFILE)

stale: $(READY)  ## list the stages whose committed results are not of this code; nothing where all are
	@$(RUN) paper.prove --list

prove: $(READY)  ## show that a change of the code changes no result, and renew dvc.lock: BEFORE=<commit of the old code>
	$(RUN) paper.prove --before '$(BEFORE)' $(STAGES)

# mamba-ssm is built without CUDA: only its plain PyTorch scan is wanted here.
peers: $(READY)  ## add to .venv the packages that PROFILE=scan compares with beside those of the lock: mambapy, mamba-ssm
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(VENV)/bin/uv pip install --python $(VENV)/bin/python \
		--no-build-isolation-package mamba-ssm --constraints requirements.txt 'mambapy==1.2.0' 'mamba-ssm==2.3.2.post1'

lint: $(READY)  ## check the format and the style of the code
	$(RUN) ruff format --check kwslib paper tests examples
	$(RUN) ruff check kwslib paper tests examples

# One thread for each of the processes: those of PyTorch wait for each other by spinning, and cost more than they bring.
test: lint  ## run the tests and the notebooks
	OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env \
		--durations=10 -q $(wildcard notebooks) tests

torture: $(READY)  ## try 20,000 damaged inputs, 250 kills, full disks, faulty servers: half an hour, results/torture.md
	OMP_NUM_THREADS=1 $(RUN) paper.torture

figures: profile $(READY)  ## draw the tables and figures again from the committed results, as PROFILE says
	@case '$(PROFILE)' in search|rates) echo "error: profile $(PROFILE) has no figures; its table is results/$(PROFILE)/trials.md" >&2; exit 2 ;; esac
	$(RUN) paper.execute $(NOTEBOOK)

pages: $(READY)  ## write README.md and the pages of docs with numbers again from their templates and the committed results
	$(RUN) paper.pages

page: $(READY)  ## fetch what web/ needs, export Mamba-Light for it, and serve it at http://localhost:8000
	npm --prefix web install --no-audit --no-fund --ignore-scripts
	$(VENV)/bin/kws export mamba_light --streaming --out web/model.onnx
	$(RUN) http.server --bind localhost --directory web 8000

pipelines:  ## copy dvc.yaml to the profiles that share it
	for profile in subset long commands paper; do cp dvc.yaml profiles/$$profile/dvc.yaml; done

lock:  ## resolve pyproject.toml into requirements.txt; UPGRADE=--upgrade takes newer releases
	@test -x $(VENV)/bin/uv || { $(NEW_VENV); }
	$(VENV)/bin/uv pip compile pyproject.toml --extra test --universal --python-version 3.10 $(UPGRADE) \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.txt

clean:  ## remove data, checkpoints and scratch; results, figures and .venv stay
	rm -rf data checkpoints tmp .pytest_cache .hypothesis build *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

profile:
	@case ' $(PROFILES) ' in *' $(PROFILE) '*) ;; *) \
		echo "error: no profile is called '$(PROFILE)'; choose one of: $(PROFILES)" >&2; exit 2 ;; esac

define NEW_VENV
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo "error: '$(PYTHON)' is not Python 3.10 or newer;" \
	"name one that is, as in: make env PYTHON=python3.12" >&2; exit 2; }; \
$(PYTHON) -c 'import ensurepip, venv' || { \
	echo "error: '$(PYTHON)' comes without venv; install it (on Debian: python3-venv)" >&2; exit 2; }; \
$(PYTHON) -m venv --clear $(VENV) && \
$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: uv==$(UV_VERSION)
endef

# The lock holds setuptools too, and constrains the one package that must be built.
$(READY): pyproject.toml requirements.txt
	@rm -f $(READY)
	@echo "making $(VENV): about 5.5 GB, most of it the CUDA libraries that torch's Linux build brings"
	@$(NEW_VENV)
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --require-hashes \
		--build-constraints requirements.txt -r requirements.txt
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)
