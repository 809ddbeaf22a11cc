"""Compilation of the libraries for other runtimes at first use, in separate processes with their own caches."""

import time
from pathlib import Path

import pytest

from builds import SOURCE, Command, FindOrBuild
from compilers import compilations, recording_compiler
from involution import hosts, libraries


onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def sources(tmp_path) -> Path:
    """Stand-ins for the sources."""
    folder = tmp_path / "sources"
    (folder / "cpu").mkdir(parents=True)
    (folder / "onnxruntime.cpp").write_text(SOURCE)
    (folder / "cpu/kernels.cpp").write_text("int kernels = 0;\n")
    return folder


def test_two_processes_compile_once(sources, tmp_path):
    wait = f"while [[ ! -e {tmp_path}/go ]]; do sleep 0.1; done"
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", wait)
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    processes = [FindOrBuild("onnxruntime", sources, **environment) for _ in range(2)]
    asked, deadline = Path(f"{compiler}.asked"), time.monotonic() + 100
    while not asked.exists() or len(set(asked.read_text().split())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (tmp_path / "go").touch()
    first, second = (process.outcome() for process in processes)
    assert first == second and first.exists()
    assert compilations(compiler) == 2  # the adapter and the kernels
    # Without a compiler, as on the nodes of a cluster.
    environment["CXX"] = "missing-compiler"
    assert FindOrBuild("onnxruntime", sources, **environment).outcome() == first


def test_the_kernels_are_compiled_once_for_all_hosts(sources, tmp_path):
    (sources / "involution2d_cpu.cpp").write_text(SOURCE)
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0")
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    for target, calls in (("cpu", 2), ("onnxruntime", 3)):
        assert FindOrBuild(target, sources, **environment).outcome().exists()
        assert compilations(compiler) == calls


def test_a_compilation_that_fails_is_repeated_only_by_the_command(sources, tmp_path):
    refuse = "echo 'a.cpp:1:1: error: this is not C++'; exit 1"
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", refuse)
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    for _ in range(2):
        error = FindOrBuild("onnxruntime", sources, **environment).outcome()
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("compilation failed: a.cpp:1:1: error: this is not C++ (see ")
        assert "run `python -m involution.build onnxruntime`" in str(error)
        assert compilations(compiler) == 1
    for calls in (2, 3):
        status, errors = Command("onnxruntime", **environment).outcome()
        assert status == 1 and "\nonnxruntime: compilation failed: a.cpp:1:1: error: this is not C++" in errors
        assert compilations(compiler) == calls


def test_a_killed_compiler_is_started_again(sources, tmp_path):
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", "kill -9 $$")
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    for calls in (1, 2):
        error = FindOrBuild("onnxruntime", sources, **environment).outcome()
        assert "code=137" in str(error) and "The next start tries again" in str(error)
        assert compilations(compiler) == calls


@pytest.mark.parametrize("runtime", hosts.RUNTIMES)
def test_a_missing_package_is_named(runtime, tmp_path):
    expected = f"the operator for {runtime} needs {runtime}: pip install {runtime}"
    error = FindOrBuild(runtime, tmp_path, {runtime: None}).outcome()
    assert isinstance(error, ModuleNotFoundError) and str(error) == expected
    assert Command(runtime, modules={runtime: None}).outcome() == (1, f"{runtime}: {expected}\n")


def test_each_release_of_a_runtime_has_its_library(monkeypatch):
    names = {target: libraries.name_of(target, "0123abcd") for target in ("cpu", "onnxruntime")}
    monkeypatch.setattr(onnxruntime, "__version__", "1.17.0")
    assert libraries.name_of("cpu", "0123abcd") == names["cpu"]
    assert libraries.name_of("onnxruntime", "0123abcd") != names["onnxruntime"]
