"""Compilation at first use, in processes of their own with a cache of their own."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import pytest

from compilers import quick_compiler
from involution import extension


# Adds up an involution whose kernel and input are all ones: every output is the number of taps inside of the image.
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


def finish(process: subprocess.Popen) -> tuple[str, str]:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output, errors


def test_four_processes_compile_once_after_a_fifth_was_killed(tmp_path):
    cache = tmp_path / "cache"
    environment = {"TORCH_EXTENSIONS_DIR": str(cache), "CXX": quick_compiler(tmp_path / "compiler", "-O0")}
    victim = start(USE, **environment)
    deadline = time.monotonic() + 120
    while not list(cache.glob("involution_cpu_*/build.ninja")):  # the compiler is about to run, or running
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()

    results = [finish(process) for process in [start(USE, **environment) for _ in range(4)]]
    errors = "".join(error for _, error in results)
    assert errors.count("Compiling the involution operator for cpu") == 1
    assert errors.count("Compiled the involution operator for cpu in") == 1
    assert all("cpu: compiled (" in output for output, _ in results)
    assert "RuntimeWarning" not in errors

    # What was compiled is used without ninja or a compiler, as on the nodes of a cluster.
    output, errors = finish(start(USE, **{**environment, "PATH": "/nonexistent", "CXX": "missing-compiler"}))
    assert "cpu: compiled (" in output and "RuntimeWarning" not in errors


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
    finish(start(CHECK, CXX=compiler, TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"), PYTHONPATH=support))


@pytest.mark.skipif(shutil.which("clang++") is None, reason="needs clang++")
def test_clang_compiles_it_as_well(tmp_path):
    check_build("clang++", tmp_path)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for kinds of x86-64")
def test_processors_without_avx(tmp_path):
    """Compiled as on machines that have no more than SSE2. What has AVX2 runs what test_kernel_hub.py compiles."""
    check_build(quick_compiler(tmp_path / "compiler", target="x86-64"), tmp_path)


@pytest.mark.parametrize(
    "environment, reason, cure",
    [
        ({"PATH": "/nonexistent"}, "no C++ compiler", "Install g++"),
        ({"CXX": "missing-compiler"}, "'missing-compiler' is not on PATH", "set CXX"),
        ({"CXX": "false"}, "compilation failed", "build.log"),
        ({"TORCH_EXTENSIONS_DIR": "/dev/null/cache"}, "cannot be written", "Set TORCH_EXTENSIONS_DIR"),
    ],
)
def test_without_compiled_kernels_one_warning_and_right_results(environment, reason, cure, tmp_path):
    output, errors = finish(start(USE, **{"TORCH_EXTENSIONS_DIR": str(tmp_path), **environment}))
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
    assert torch.autograd.gradgradcheck(involution.involution2d, (input, kernel, *arguments))
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
    finish(start(code, PATH="/nonexistent", TORCH_EXTENSIONS_DIR="/dev/null/cache"))


@pytest.mark.parametrize(
    "built, capability, serves",
    [
        ("8.0;9.0", (8, 6), True),  # of its own major architecture, from its minor version upwards
        ("8.6", (8, 0), False),
        ("8.0;9.0", (12, 0), False),
        ("8.0;9.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 0), False),
        ("9.0a", (9, 0), True),
    ],
)
def test_which_gpus_a_library_serves(built, capability, serves, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", built)
    library = extension._library_name("cuda")
    (tmp_path / library).mkdir()
    (tmp_path / library / "complete").touch()
    monkeypatch.setattr(extension, "_device_capabilities", lambda: [capability])
    assert extension._find("cuda") == (tmp_path / library / f"{library}.so" if serves else None)


def test_architectures_are_numbers(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    with pytest.raises(RuntimeError, match="TORCH_CUDA_ARCH_LIST has 'Hopper', expected numbers such as"):
        extension.build("cuda")


def test_importing_compiles_nothing(tmp_path):
    finish(start("import involution; involution.show_config()", TORCH_EXTENSIONS_DIR=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_reloaded_module_registers_nothing_twice():
    finish(start("import importlib, involution; importlib.reload(involution.ops); importlib.reload(involution)" + USE))


def test_build_ahead_of_time_says_what_it_made_or_why_not():
    command = [sys.executable, "-m", "involution.build"]
    made = subprocess.run([*command, "cpu"], capture_output=True, text=True)
    assert made.returncode == 0 and made.stdout.startswith("cpu: ") and made.stdout.strip().endswith(".so")
    environment = {**os.environ, "PATH": "/nonexistent", "TORCH_CUDA_ARCH_LIST": "7.5", "CUDA_HOME": "/nonexistent"}
    environment["TORCH_EXTENSIONS_DIR"] = os.devnull + "/cache"
    failed = subprocess.run([*command, "cuda"], capture_output=True, text=True, env=environment)
    assert failed.returncode == 1 and "cuda: " in failed.stderr and "Set TORCH_EXTENSIONS_DIR" in failed.stderr
    unknown = subprocess.run([*command, "tpu"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "tpu" in unknown.stderr
