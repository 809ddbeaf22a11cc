# `make demo` and `make test` install everything. They need Python >= 3.10, a C++ compiler and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo app test test-all docs-test wheel bench gpu clean

# Trains a small RedNet on Fashion-MNIST, saves it as a Hub folder, loads it again and classifies pictures.
demo: $(VENV)/installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		training/train.py --config configs/training/fashion_mnist.yaml
	$(BIN)/python training/demo.py outputs/demo

# Shows the kernels that a model generates for a picture, in the browser: make app MODEL=folder-or-hub-id.
app: $(VENV)/installed
	$(BIN)/python app/app.py $(if $(MODEL),--model '$(MODEL)')

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find docs src tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' | \
		xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25 $(TESTS)

# And the tests that are marked slow, which repeat on a larger scale what another test proves.
test-all:
	$(MAKE) test TESTS=--slow

# Runs every snippet and command of README.md and docs, with small models and data: about 15 minutes on two cores.
docs-test: $(VENV)/installed
	$(BIN)/python -m pytest tests/docs --all-snippets -n 2

# Builds the wheel that needs no compiler into dist, on x86-64 Linux. auditwheel checks that glibc 2.28 has all that the
# library uses; torch brings libtorch_cpu.so.
wheel: $(VENV)/installed
	rm -rf build/wheel
	INVOLUTION_WHEEL=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--wheel-dir build/wheel .
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 --only-plat --exclude libtorch_cpu.so \
		--wheel-dir dist build/wheel/*.whl

# Measures on the GPU, if there is one, and writes tables to outputs/bench, as Markdown and CSV.
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/operator_speed.py --output outputs/bench/operator
	$(BIN)/python benchmarks/network_speed.py --output outputs/bench/network
	$(BIN)/python benchmarks/export_speed.py --device cpu --output outputs/bench/export

# Proves the operator on an NVIDIA GPU and measures it and RedNet-50 there, in at most 40 minutes (make gpu QUICK=1: 10).
# Writes a folder of records with one page into outputs/gpu. docs/gpu.md explains it.
gpu: $(VENV)/installed
	$(BIN)/python benchmarks/gpu.py $(if $(QUICK),--quick)

# Without --no-compile, pip would compile 20,000 Python files, of which most are never imported.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is required, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 5 GB with the CUDA libraries of torch, a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) outputs build dist
