# `make` lists the commands. Each of them installs into .venv first what it needs: Python >= 3.10, a C++ compiler and make
# must be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo app test test-all docs-test wheel bench gpu clean

help:
	@sed -nE 's/^([a-z-]+):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/installed  ## trains a small RedNet on Fashion-MNIST, saves it as a Hub folder, classifies pictures with it
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		training/train.py --config configs/training/fashion_mnist.yaml
	$(BIN)/python training/demo.py outputs/demo

app: $(VENV)/installed  ## shows the kernels of the demo's model, or of MODEL=folder-or-hub-id, in the browser
	$(BIN)/python app/app.py $(if $(MODEL),--model '$(MODEL)')

test: $(VENV)/installed  ## runs the linters and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find docs src tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' | \
		xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25 $(TESTS)

test-all:  ## runs the slow tests as well, which repeat on a larger scale what another test proves
	$(MAKE) test TESTS=--slow

docs-test: $(VENV)/installed  ## runs the snippets and commands of README.md and docs: about 15 minutes on two cores
	$(BIN)/python -m pytest tests/docs --all-snippets -n 2

# auditwheel checks that glibc 2.28 has all that the library uses; torch brings libtorch_cpu.so.
wheel: $(VENV)/installed  ## builds the wheel that needs no compiler into dist, on x86-64 Linux
	rm -rf build/wheel
	INVOLUTION_WHEEL=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--wheel-dir build/wheel .
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 --only-plat --exclude libtorch_cpu.so \
		--wheel-dir dist build/wheel/*.whl

bench: $(VENV)/installed  ## measures, on the GPU if there is one, and writes tables to outputs/bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/operator_speed.py --output outputs/bench/operator
	$(BIN)/python benchmarks/network_speed.py --output outputs/bench/network
	$(BIN)/python benchmarks/export_speed.py --device cpu --output outputs/bench/export

# Writes a folder of records with one page into outputs/gpu. docs/gpu.md explains it.
gpu: $(VENV)/installed  ## tests and measures on an NVIDIA GPU, in at most 40 minutes (QUICK=1: 10)
	$(BIN)/python benchmarks/gpu.py $(if $(QUICK),--quick)

# Without --no-compile, pip would compile 20,000 Python files, of which most are never imported.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is required, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 5 GB with the CUDA libraries of torch, a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

clean:  ## removes .venv, outputs, build and dist
	rm -rf $(VENV) outputs build dist
