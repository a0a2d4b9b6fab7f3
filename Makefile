# Everything a newcomer types. Needs Python 3.11 to 3.13, git and make; the rest is installed into .venv.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Containers set it, and then each of the tests' many processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE
# `make TORCH=cpu demo`: torch as built for CPUs, of the lock's version, without 3 GB of CUDA libraries and without DALI.
TORCH ?=
# The interpreter that is there, or the one that uv finds or fetches.
define CHOOSE_PYTHON
import sys
print(sys.executable if (3, 11) <= sys.version_info[:2] <= (3, 13) else ">=3.11,<3.14")
endef
export CHOOSE_PYTHON
# The uv that is there already, or one of our own.
UV := $(or $(shell command -v uv),.uv/bin/uv)

.DEFAULT_GOAL := help
.PHONY: help demo demo-methods rehearse rehearse-recipes save restore docs test suite test-slurm test-gpu test-faults test-sweep bench benchmark benchmark-table quick lint format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: workflow/schemas  ## real digits, from images to a judged table (3 minutes on 2 cores)
	@python scripts/demo.py

demo-methods: workflow/schemas  ## does each method help, on the digits? (13 minutes on 2 cores)
	@python scripts/demo.py digits-methods

REHEARSE := snakemake --cores all --keep-going --config rehearsal=true

rehearse: .venv/.installed  ## every experiment with its real networks, on a few generated images
	$(REHEARSE) experiments=all

rehearse-recipes: .venv/.installed  ## one run of each recipe and kind of teacher, rehearsed
	$(REHEARSE) -- rehearse_recipes

save: .venv/.installed  ## record, and send results to DVC's remote
	@python scripts/versions.py save $(EXPERIMENT)

restore: .venv/.installed  ## bring recorded results back from DVC's remote
	@python scripts/versions.py restore $(EXPERIMENT)

# mypy has one core for a minute.
test: workflow/schemas  ## every check and test but those below (about 15 minutes on 2 cores)
	@$(MAKE) --no-print-directory -j 2 lint suite

suite: workflow/schemas
	OMP_NUM_THREADS=1 pytest -n auto --dist worksteal -m "not sweep"

test-sweep: workflow/schemas  ## every term and every family of networks, as student and as teacher (4 minutes on 2 cores)
	OMP_NUM_THREADS=1 pytest -n auto --dist worksteal -m sweep

test-slurm: .venv/.installed  ## the workflow on a real Slurm cluster on this machine (Debian or Ubuntu, as root)
	bash tests/slurm/install.sh
	TEST_SLURM=1 OMP_NUM_THREADS=1 pytest tests/slurm

test-faults: workflow/schemas  ## broken configurations, data and machines, each with its one line (half a minute of one core)
	OMP_NUM_THREADS=1 pytest tests/faults

test-gpu: .venv/.installed  ## what only a GPU can show, with a report (under 8 minutes on one or more GPUs)
	TEST_GPU=1 OMP_NUM_THREADS=1 pytest tests/gpu

bench: workflow/schemas  ## how fast, beside the strongest rivals: one table of ratios (15 to 25 minutes, on a quiet machine)
	@python benchmarks/run.py

benchmark: workflow/schemas  ## every term on CIFAR-10, beside a student alone and tuned KD (some ten hours on 2 cores)
	@python scripts/benchmark.py

benchmark-table: .venv/.installed  ## the benchmark's tables, figures, cards and README again, from its records in docs/benchmarks
	@python scripts/benchmark.py table

quick: workflow/schemas  ## the quick tests (a minute and a half on 2 cores)
	OMP_NUM_THREADS=1 pytest -n auto --dist worksteal -m "not slow and not sweep"

lint: workflow/schemas  ## style, types, workflow style
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check workflow
	snakemake --lint

format: .venv/.installed  ## rewrite files in the house style
	ruff check --fix .
	ruff format .
	snakefmt workflow

lock: $(UV)  ## refresh requirements.txt from pyproject.toml
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --extra workflow --extra dvc --extra dev --extra dali --extra export --upgrade \
		--no-emit-index-url --no-header --quiet --output-file requirements.txt pyproject.toml
	sed -n '/^docs = \[/,/^\]/s/^ *"\(.*\)",/\1/p' pyproject.toml | $(UV) pip compile --universal --python-version 3.11 --generate-hashes --upgrade \
		--no-emit-index-url --no-header --quiet --output-file docs/requirements.txt -

docs: .venv/.installed .docs/.installed  ## the documentation as a site, .docs/site/index.html (a minute; broken links fail)
	OMP_NUM_THREADS=1 .docs/bin/python scripts/docs.py .docs/source
	NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --quiet

clean:  ## remove the environment; keeps data/ and results/
	rm -rf .venv .uv .docs

# pip's --target leaves the user's own Python alone, and is allowed where a distribution forbids installing into it.
.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .uv uv

.venv/.installed: requirements.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python "$$($(PYTHON) -c "$$CHOOSE_PYTHON")" .venv
ifeq ($(TORCH),cpu)
	sed -n '/^[a-z]/{h;};G;/\n\(torch\|torchvision\|triton\|nvidia-[^=]*\|cuda-[^=]*\)==/!{s/\n.*//;p;}' requirements.txt > .requirements-cpu.txt
	$(UV) pip sync --quiet --compile-bytecode --python .venv --require-hashes .requirements-cpu.txt
	$(UV) pip install --quiet --python .venv --no-deps --torch-backend cpu $$(sed -n 's/^\(torch\(vision\)\{0,1\}==[^ ]*\).*/\1/p' requirements.txt)
	rm .requirements-cpu.txt
else
	$(UV) pip sync --quiet --compile-bytecode --python .venv --require-hashes requirements.txt
endif
	$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@

# What makes the site, beside the environment that it is about.
.docs/.installed: docs/requirements.txt .venv/.installed | $(UV)
	$(UV) venv --quiet --allow-existing --python .venv/bin/python .docs
	$(UV) pip sync --quiet --python .docs --require-hashes docs/requirements.txt
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib")); print("$(CURDIR)/src")' \
		> "$$(.docs/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/distillery.pth"
	@touch $@

# What editors check the files of config/ with.
workflow/schemas: .venv/.installed $(shell find src/distillery/experiment -name '*.py')
	@distillery schema
	@touch $@
