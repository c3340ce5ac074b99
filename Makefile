# Every target works from a bare clone: it makes its own virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint parity gpu-compile gpu-decode browser slurm clean help

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
	  sys.exit(0 if ok else f"clip_jax needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "Installing clip_jax and what it needs into $(VENV), which takes a minute or two ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

# Large pages for the temporaries of a step, where the C library has them: a fifth less time on a CPU.
demo: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# One loop over memory for all that is computed from the same arrays: 7 % more images a second on a CPU.
demo: export XLA_FLAGS := --xla_backend_extra_options=xla_cpu_use_multi_output_fusion $(XLA_FLAGS)
demo: $(VENV)/installed  ## train a small CLIP on the embedded shapes, evaluate it, write the report
	$(BIN)/clip-jax train --config configs/shapes_tiny.py
	$(BIN)/clip-jax eval runs/shapes_tiny

lint: $(VENV)/installed-test  ## format and lint, without changing a file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# A run on eight CPU devices can hang: two of them wait in different all-gathers of one program (seen with jax 0.10.2).
# conftest.py ends a worker that hangs, and what it was at is tried once more. A test that fails is not.
test: lint  ## all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 2 --reruns 1 --only-rerun 'none that fails'

.venv-parity/installed: setup.py benchmarks/install_peers.py
	$(PYTHON) -m venv --clear .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,parity]'
	.venv-parity/bin/python benchmarks/install_peers.py
	@touch $@

parity: .venv-parity/installed  ## compare with open_clip and transformers (needs PyTorch)
	.venv-parity/bin/python -m pytest tests/parity

.venv-gpu/installed: setup.py
	$(PYTHON) -m venv --clear .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,plan-gpu]'
	@touch $@

gpu-compile: .venv-gpu/installed  ## compile the train step for NVIDIA GPUs, on any x86-64 Linux machine (5 GB); ONLY=SigLIP: of such
	.venv-gpu/bin/python -m pytest tests/gpu_compile $(if $(ONLY),-k '$(ONLY)') -n 2 --dist worksteal --max-worker-restart 0

.venv-gpu-decode/installed: setup.py
	$(PYTHON) -m venv --clear .venv-gpu-decode
	.venv-gpu-decode/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,gpu-decode]'
	@touch $@

gpu-decode: .venv-gpu-decode/installed  ## decode through NVIDIA's DALI, on its CPU device (3 GB)
	.venv-gpu-decode/bin/python -m pytest tests/gpu_decode

browser: $(VENV)/installed-test  ## the search page in a headless Chromium, which is installed (Debian or Ubuntu, as root)
	command -v chromedriver chromium || (apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,browser]'
	CLIP_JAX_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest tests/search/browser

slurm: $(VENV)/installed-test  ## preempt a run on a real Slurm of this one machine (Debian or Ubuntu, as root)
	tests/launch/slurm_cluster.sh

clean:  ## remove the environments and caches, never data or runs
	rm -rf $(VENV) .venv-parity .venv-gpu .venv-gpu-decode .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
