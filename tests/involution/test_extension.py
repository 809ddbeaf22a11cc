"""Compilation at first use, in separate processes with their own caches."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from builds import SOURCE, Load
from compilers import compilations, quick_compiler, recording_compiler
from interpreter import python
from involution import extension, libraries


# Kernel and input are all ones, so that every output is the number of taps inside of the image.
USE = """
import logging, warnings
logging.basicConfig(format="%(message)s")
import torch, involution
output = involution.involution2d(torch.ones(1, 16, 4, 5), torch.ones(1, 1, 3, 3, 4, 5))
output = involution.involution2d(output, torch.ones(1, 1, 1, 1, 4, 5))
assert output[0, 0].tolist() == [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]], output
print(involution.show_config())
"""


def start(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(code: str, **environment: str) -> tuple[str, str]:
    result = python("-c", code, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def wait_for(condition) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_stand_in(folder: Path, source: str = SOURCE) -> str:
    """Returns the start of a program that uses a stand-in for the sources of the operator."""
    folder.mkdir()
    (folder / "involution2d_cpu.cpp").write_text(source)
    return f"""
from pathlib import Path
from involution import extension, libraries
libraries.CSRC = Path({str(folder)!r})
"""


def test_four_processes_compile_once_after_a_fifth_was_killed(tmp_path):
    wait = f"while [[ ! -e {tmp_path}/go ]]; do sleep 0.1; done"
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", wait)
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    victim = start(write_stand_in(tmp_path / "sources") + "extension.load('cpu')", **environment)
    wait_for(lambda: compilations(compiler) == 1)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    (tmp_path / "go").touch()

    started = [Load(tmp_path / "sources", **environment) for _ in range(4)]
    outcomes = [process.outcome() for process in started]
    assert compilations(compiler) == 2
    assert len({outcome.loaded for outcome in outcomes} - {None}) == 1
    assert not any(outcome.warnings for outcome in outcomes)


def test_compiled_kernels_run_without_ninja_and_compiler():
    """As on the nodes of a cluster."""
    assert extension.load("cpu")
    output, errors = run(USE, PATH="/nonexistent", CXX="missing-compiler")
    assert "cpu: compiled (" in output and "RuntimeWarning" not in errors


def fail_together(tmp_path, compiler: str, environment: dict, number: int = 3) -> list:
    """Returns the outcomes of processes of which one compiles, and fails when all others wait for it."""
    started = [Load(tmp_path / "sources", **environment) for _ in range(number)]
    asked = Path(f"{compiler}.asked")
    wait_for(lambda: asked.exists() and len(set(asked.read_text().split())) == number and compilations(compiler) == 1)
    time.sleep(1)  # between the call of the compiler for its version and the lock
    (tmp_path / "go").touch()
    return [process.outcome() for process in started]


def test_a_compilation_that_fails_is_not_repeated(tmp_path):
    """By one of several processes that start together, and again if the compiler or its environment changes."""
    wait = f"while [[ ! -e {tmp_path}/go ]]; do sleep 0.1; done"
    refuse = "echo 'a.cpp:1:1: error: this is not C++'; exit 1"
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", f"{wait}; {refuse}")
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    for outcome in fail_together(tmp_path, compiler, environment):
        assert outcome.loaded is None and len(outcome.warnings) == 1
        assert "compilation failed: a.cpp:1:1: error: this is not C++" in outcome.warnings[0]
    assert compilations(compiler) == 1
    again = Load(tmp_path / "sources", **environment).outcome()
    assert compilations(compiler) == 1 and len(again.warnings) == 1
    record = next((tmp_path / "cache").glob("*/failure.json"))
    for text in (again.warnings[0], again.config):
        assert "this is not C++" in text and "`python -m involution.build cpu`" in text and f"remove {record}" in text

    assert "not C++" in Load(tmp_path / "sources", **environment, CPATH="/include").outcome().warnings[0]
    assert compilations(compiler) == 2
    (tmp_path / "compiler").write_text((tmp_path / "compiler").read_text().replace(refuse, ":"))  # a repaired one
    repaired = Load(tmp_path / "sources", **environment).outcome()
    assert repaired.loaded is not None and not repaired.warnings
    assert not record.exists()


def test_the_command_repeats_a_compilation_that_failed(tmp_path):
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", "exit 1")
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    for _ in range(2):
        before = compilations(compiler)
        result = python("-m", "involution.build", "cpu", env=environment)
        assert result.returncode == 1 and "compilation failed" in result.stderr
        assert compilations(compiler) > before  # by one for each source that ninja starts at the same time
    calls = compilations(compiler)
    output, errors = run(USE, **environment)
    assert compilations(compiler) == calls
    assert errors.count("RuntimeWarning") == 1 and "cpu: plain PyTorch, because compilation failed" in output


@pytest.mark.parametrize(
    "reply",
    [
        "echo 'a.cpp:1:1: fatal error: Python.h: No such file or directory'; exit 1",
        "echo 'fatal error: error writing to /tmp/a.s: No space left on device'; exit 1",
        "echo 'c++: fatal error: Killed signal terminated program cc1plus'; exit 1",
        "kill -9 $$",
    ],
)
def test_a_transient_failure_is_retried_at_the_next_start(reply, tmp_path):
    """But only by one of several processes that start together."""
    wait = f"while [[ ! -e {tmp_path}/go ]]; do sleep 0.1; done"
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0", f"{wait}; {reply}")
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "CXX": compiler}
    for outcome in fail_together(tmp_path, compiler, environment, number=2):
        assert len(outcome.warnings) == 1 and "The next start tries again" in outcome.warnings[0]
        assert ("No space left" in reply) == ("Set TORCH_EXTENSIONS_DIR, and TMPDIR" in outcome.warnings[0])
    assert compilations(compiler) == 1
    assert len(Load(tmp_path / "sources", **environment).outcome().warnings) == 1
    assert compilations(compiler) == 2


def test_each_compiler_has_its_library(tmp_path):
    one = recording_compiler(tmp_path / "one", "'one (GNU) 1.0'")
    two = recording_compiler(tmp_path / "two", "'two (GNU) 2.0'")
    cache = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}

    def library(compiler: str, **environment: str) -> Path:
        outcome = Load(tmp_path / "sources", **cache, CXX=compiler, **environment).outcome()
        assert not outcome.warnings and f"cpu: compiled ({outcome.loaded})" in outcome.config
        return outcome.loaded

    by_one, by_two = library(one), library(two)
    assert by_one != by_two
    assert (library(one), library(two)) == (by_one, by_two)
    assert (compilations(one), compilations(two)) == (1, 1)
    # Without a compiler, as in an image, and with one that cannot compile, the newest library of any compiler is used.
    assert library("missing-compiler") == library(recording_compiler(tmp_path / "three", "3", "exit 1")) == by_two
    # The name of the program makes no difference.
    alias = recording_compiler(tmp_path / "alias", "'alias (GNU) 1.0'")
    assert library(alias) == by_one


def test_paths_with_spaces(tmp_path):
    """In the paths of the environment, the compiler, the sources and the cache."""
    folder = tmp_path / "with spaces (and more)"
    shutil.copytree(Path(extension.__file__).parent, folder / "source" / "involution")
    (folder / "source" / "involution" / "csrc" / "involution2d_cpu.cpp").write_text(SOURCE)
    shutil.rmtree(folder / "source" / "involution" / "csrc" / "cpu")
    (folder / "environment").symlink_to(sys.prefix)
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0")
    os.rename(compiler, folder / "compiler")
    environment = {"TORCH_EXTENSIONS_DIR": str(folder / "cache"), "CXX": str(folder / "compiler")}
    environment |= {**os.environ, **environment, "PYTHONPATH": str(folder / "source")}
    code = "import torch; from involution import extension; print(extension.load('cpu'), extension.__file__, torch.__file__)"
    interpreter = str(folder / "environment" / "bin" / "python")
    result = subprocess.run([interpreter, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"True {folder}") and "RuntimeWarning" not in result.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch")
def test_a_toolkit_in_a_path_with_a_space_is_named(tmp_path):
    nvcc = tmp_path / "the toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    environment = {"CUDA_HOME": str(tmp_path / "the toolkit"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    environment = {**os.environ, **environment, "TORCH_CUDA_ARCH_LIST": "9.0"}
    result = python("-m", "involution.build", "cuda", env=environment)
    assert result.returncode == 1 and repr(environment["CUDA_HOME"]) in result.stderr
    assert "Set CUDA_HOME to a symbolic link" in result.stderr


def without_an_account() -> list[str]:
    """The start of a command that runs as a user id without an account, as in some containers."""
    command = ["unshare", "--user", "--map-user=54321"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this process must not make user namespaces")
    return command


def test_users_without_an_account(tmp_path):
    cache = tmp_path / "cache"
    code = write_stand_in(tmp_path / "sources") + "print(extension.show_config()); print(extension.load('cpu'))"

    def load(folder) -> tuple[str, str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
        environment |= {"TORCH_EXTENSIONS_DIR": str(folder)}
        command = [*without_an_account(), sys.executable, "-c", code]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout, result.stderr

    output, errors = load(cache)
    assert "cpu: to be compiled" in output and output.endswith("True\n") and "RuntimeWarning" not in errors
    output, errors = load("")
    assert output.endswith("False\n") and errors.count("RuntimeWarning") == 1
    for text in (output, errors):
        assert "user 54321 has no home folder" in text and "Set TORCH_EXTENSIONS_DIR" in text

    # As if another user were compiling it.
    folder = next(cache.glob("*/complete")).parent
    (folder / "complete").unlink()
    (folder / "build.lock").chmod(0o444)
    folder.chmod(0o555)
    output, errors = load(cache)
    assert output.endswith("False\n") and errors.count("RuntimeWarning") == 1
    assert f"{folder} cannot be written" in errors and "Set TORCH_EXTENSIONS_DIR" in errors


def mounted(folder: Path, mount: str) -> list[str]:
    """The start of a command that runs with `folder` ("$0" in `mount`) mounted in this way, only for this command."""
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this process must not mount")
    return command


@pytest.mark.parametrize(
    "mount, reason",
    [
        ('mount -t tmpfs -o noexec none "$0"', "is mounted noexec"),
        ('mount -t tmpfs -o size=4k none "$0" && head -c 4096 /dev/zero > "$0/file"', "No space left on device"),
        ('mount -t tmpfs -o ro none "$0"', "Read-only file system"),
    ],
    ids=["noexec", "full", "read-only"],
)
def test_caches_that_cannot_hold_a_library(mount, reason, tmp_path):
    compiler = recording_compiler(tmp_path / "compiler", "one 1.0")
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(cache), "CXX": compiler}
    command = [*mounted(cache, mount), sys.executable, "-c", USE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert reason in result.stderr and "Set TORCH_EXTENSIONS_DIR to a" in result.stderr
    assert compilations(compiler) == 0


def test_a_library_in_a_read_only_cache_is_loaded(tmp_path):
    one, two = (recording_compiler(tmp_path / name, f"{name} 1.0") for name in ("one", "two"))
    cache = tmp_path / "cache"
    environment = {"TORCH_EXTENSIONS_DIR": str(cache), "CXX": one}
    library = Load(tmp_path / "sources", **environment).outcome().loaded
    code = f"""
import os
from pathlib import Path
from involution import extension, libraries
libraries.CSRC = Path({str(tmp_path / "sources")!r})
assert extension.load("cpu") and extension._loaded["cpu"] == Path({str(library)!r}), extension.show_config()
"""
    read_only = mounted(cache, 'mount -o bind,ro "$0" "$0"')
    for compiler in (one, two):  # `two` would have to write its own library
        result = subprocess.run(
            [
                *read_only,
                sys.executable,
                "-c",
                code + f"\nassert extension.build('cpu') == Path({str(library)!r})" * (compiler == one),
            ],
            env={**os.environ, **environment, "CXX": compiler},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0 and "RuntimeWarning" not in result.stderr, result.stderr


def test_a_damaged_library_is_named(tmp_path):
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    library = Load(tmp_path / "sources", **environment).outcome().loaded
    library.write_bytes(b"")
    outcome = Load(tmp_path / "sources", **environment).outcome()
    assert len(outcome.warnings) == 1 and f"remove {library.parent} to compile it again" in outcome.warnings[0]


def test_a_library_without_kernels_for_this_processor(tmp_path):
    """As that of the wheel where the processor does not report AVX2. The operators must not call themselves for ever."""
    code = write_stand_in(tmp_path / "sources", 'extern "C" int nothing() { return 0; }\n')
    packaged = tmp_path / "lib" / "involution_cpu.so"
    packaged.parent.mkdir()
    code += f"""
libraries.PACKAGED = Path({str(packaged.parent)!r})
libraries._cpu_instructions = lambda: "avx2 fma"
"""
    for cache, cure in (("one", "remove .* to compile it again"), ("two", "set INVOLUTION_COMPILE=1")):
        output, errors = run(code + USE, TORCH_EXTENSIONS_DIR=str(tmp_path / cache))
        for text in (output, errors):
            assert re.search(f"plain PyTorch.* has no kernels for this processor: {cure}", text), text
        assert errors.count("RuntimeWarning") == 1
        if not packaged.exists():
            shutil.copy(next((tmp_path / "one").glob("*/*.so")), packaged)


def test_the_lock_is_released_when_a_compilation_fails(tmp_path, monkeypatch):
    """Also if the error is kept, and with it the lock."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "missing-compiler")
    with pytest.raises(RuntimeError, match="missing-compiler") as error:
        extension.build_as("stand_in", "cpu")
    with FileLock(tmp_path / "stand_in" / "build.lock", timeout=0):
        assert error.tb is not None


CHECK = """
import torch
from cases import Case, check_fused, check_operators
from involution import extension
assert extension.load("cpu")
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for size in ((7, 7), (3, 3), (2, 5)):
        for group_channels in (16, 5):
            layout = "channels_last"
            case = Case(2, 2, group_channels, (14, 15), size, (1, 1), (3, 3), (1, 1), dtype, layout, layout)
            check_operators(torch.ops.involution, case)
            check_fused(torch.ops.involution, case, 20, True, True)
"""


def check_build(compiler: str, tmp_path) -> None:
    support = os.path.join(os.path.dirname(__file__), "..", "support")
    run(CHECK, CXX=compiler, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"), PYTHONPATH=support)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++")
def test_clang_compiles_it_as_well(tmp_path):
    check_build("clang++", tmp_path)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for kinds of x86-64")
def test_processors_without_avx(tmp_path):
    """Compiled as on a machine with SSE2 only. kernel_hub/test_write.py runs kernels that are compiled for AVX2."""
    check_build(quick_compiler(tmp_path / "compiler", "-O0", "x86-64"), tmp_path)


@pytest.mark.parametrize(
    "environment, reason, cure",
    [
        ({"PATH": "/nonexistent"}, "no C++ compiler", "Install g++"),
        ({"CXX": "missing-compiler"}, "'missing-compiler' is not on PATH", "set CXX"),
        ({"CXX": "g++ 'x"}, "no C++ compiler", "set CXX"),
        ({"CXX": " "}, "no C++ compiler", "set CXX"),
        ({"CXX": "false"}, "compilation failed", "build.log"),
        ({"TORCH_EXTENSIONS_DIR": "/dev/null/cache"}, "cannot be written", "Set TORCH_EXTENSIONS_DIR"),
    ],
)
def test_without_compiled_kernels_one_warning_and_right_results(environment, reason, cure, tmp_path):
    output, errors = run(USE, **{"TORCH_EXTENSIONS_DIR": str(tmp_path), **environment})
    assert errors.count("RuntimeWarning") == 1
    assert reason in errors and cure in errors
    assert "cpu: plain PyTorch, because" in output and reason in output


def test_gradients_without_compiled_kernels():
    code = """
import torch, involution
torch.manual_seed(0)
for memory_format in (torch.contiguous_format, torch.channels_last):
    input = torch.randn(2, 4, 5, 6, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    kernel = torch.randn(2, 18, 3, 6, dtype=torch.float64).to(memory_format=memory_format).unflatten(1, (2, 3, 3))
    kernel.requires_grad_()
    arguments = ((2, 1), (1, 1), (1, 1))
    assert torch.autograd.gradcheck(involution.involution2d, (input, kernel, *arguments))
    fast = memory_format is torch.channels_last
    assert torch.autograd.gradgradcheck(involution.involution2d, (input, kernel, *arguments), fast_mode=fast)
    for shape in ((0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 0, 6)):
        empty = torch.empty(shape, dtype=torch.float64, requires_grad=True)
        taps = torch.ones(shape[0], 2, 3, 3, 2 + (shape[2] + 1) // 2, 8, dtype=torch.float64, requires_grad=True)
        output = involution.involution2d(empty, taps, (2, 1), (3, 2), (1, 1))
        output.sum().backward()
        assert output.count_nonzero() == 0 and taps.grad.count_nonzero() == 0 and empty.grad.shape == shape
    torch.library.opcheck(torch.ops.involution.involution2d, (input, kernel, *map(list, arguments)))
    output = involution.involution2d(input, kernel, *arguments)
    assert output.is_contiguous(memory_format=memory_format)
assert not torch._C._dispatch_has_kernel_for_dispatch_key("involution::involution2d", "CPU")
"""
    run(code, PATH="/nonexistent", TORCH_EXTENSIONS_DIR="/dev/null/cache")


@pytest.mark.parametrize(
    "built, capability, runs",
    [
        ("8.0;9.0", (8, 6), True),  # the same major version, and a later minor version
        ("8.6", (8, 0), False),
        ("8.0;9.0", (12, 0), False),
        ("8.0;9.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 0), False),
        ("9.0a", (9, 0), True),
    ],
)
def test_which_gpus_run_a_library(built, capability, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", built)
    monkeypatch.setenv("CXX", "missing-compiler")  # so that libraries of all compilers are considered
    library = libraries.name_of("cuda", "0123abcd")
    (tmp_path / library).mkdir()
    (tmp_path / library / "complete").touch()
    monkeypatch.setattr(libraries.compiler, "device_capabilities", lambda: [capability])
    assert libraries.find("cuda") == (tmp_path / library / f"{library}.so" if runs else None)


@pytest.mark.parametrize("gpus, runs", [({"gfx90a"}, True), ({"gfx90a", "gfx942"}, True), ({"gfx90"}, False)])
def test_which_amd_gpus_run_a_library(gpus, runs, tmp_path, monkeypatch):
    """As with a ROCm build of torch. No library was built for, or ran on, an AMD GPU."""
    monkeypatch.setattr(torch.version, "hip", "7.0.1")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PYTORCH_ROCM_ARCH", "gfx942:xnack-;gfx90a")
    monkeypatch.setenv("CXX", "missing-compiler")
    library = libraries.name_of("cuda", "0123abcd")
    assert library.endswith("_gfx90a_gfx942")
    (tmp_path / library).mkdir()
    (tmp_path / library / "complete").touch()
    monkeypatch.setattr(libraries.compiler, "rocm_architectures", lambda: gpus)
    assert libraries.find("cuda") == (tmp_path / library / f"{library}.so" if runs else None)


def test_what_a_rocm_build_of_torch_needs(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0.1")
    monkeypatch.delenv("PYTORCH_ROCM_ARCH", raising=False)
    with pytest.raises(RuntimeError, match="Set PYTORCH_ROCM_ARCH, for example to 'gfx90a'"):
        libraries.compiler.architectures("cuda")
    assert "Install ROCm 7.0.1, or set ROCM_HOME" in libraries.compiler.obstacle("cuda")


def test_architectures_are_numbers(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    with pytest.raises(RuntimeError, match="TORCH_CUDA_ARCH_LIST has 'Hopper', expected numbers such as"):
        extension.build("cuda")


def test_importing_compiles_nothing(tmp_path):
    run("import involution; involution.show_config()", TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_reloaded_module_registers_nothing_twice():
    run("import importlib, involution; importlib.reload(involution.registration); importlib.reload(involution)" + USE)


def test_build_ahead_of_time_prints_libraries_or_reasons():
    command = ["-m", "involution.build"]
    made = python(*command, "cpu")
    assert made.returncode == 0 and made.stdout.startswith("cpu: ") and made.stdout.strip().endswith(".so")
    environment = {"PATH": "/nonexistent", "TORCH_CUDA_ARCH_LIST": "7.5", "CUDA_HOME": "/nonexistent"}
    environment = {**os.environ, **environment, "TORCH_EXTENSIONS_DIR": os.devnull + "/cache"}
    failed = python(*command, "cpu", "cuda", env=environment)
    assert failed.returncode == 1
    for device_type in ("cpu", "cuda"):
        assert f"{device_type}: there is no C++ compiler" in failed.stderr
    unknown = python(*command, "tpu")
    assert unknown.returncode == 2 and "tpu" in unknown.stderr
