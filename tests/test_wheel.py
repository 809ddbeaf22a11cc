"""The wheel with a compiled library: `make wheel`, and what it does where there is no compiler."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from builds import SOURCE
from environments import copy_sources, make_environment


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the wheel is for x86-64 Linux"
)


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory) -> Path:
    """A copy of the repository after `make wheel`, with less optimization, which takes a third of the time."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    version = subprocess.run(["c++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    if int(version.split(".")[0]) > 12:
        pytest.skip("OLD_SYMBOLS in setup.py are those that GCC 12 and earlier need")
    folder = tmp_path_factory.mktemp("wheel")
    copy_sources(root, folder / "clone")
    environment = folder / "environment"
    environment.mkdir()
    (environment / "installed").touch()  # the environment of this process is installed
    binaries = Path(sys.executable).parent
    command = ["make", "wheel", f"VENV={environment}", f"BIN={binaries}"]
    # -Og takes half as long as -O1, which the others need: it leaves a check in std::vector that calls a new libstdc++.
    compiler = folder / "compiler"
    compiler.write_text('#!/bin/bash\n[[ $* == *" -c "*/cpu/kernels* ]] && set -- "$@" -Og\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    variables = {**os.environ, "CXX": str(compiler), "CXXFLAGS": "-O1"}
    result = subprocess.run(command, cwd=folder / "clone", env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "clone"


@pytest.fixture(scope="module")
def wheel(clone) -> Path:
    (wheel,) = (clone / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def objects(clone) -> Path:
    """The folder of the object files."""
    return next(clone.glob("build/temp*/kernels_avx2.o")).parent


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    make_environment(folder, wheel)
    return folder


def run(environment: Path, folder: Path, code: str, *arguments, prefix: tuple = (), **variables: str) -> str:
    """What a program prints in the environment, which must not give a warning. There is no compiler."""
    command = [*map(str, prefix), str(environment / "bin/python"), "-W", "error::RuntimeWarning", "-c", code]
    support = str(Path(__file__).parent / "support")
    without = {
        "PATH": "/nonexistent",
        "CXX": "missing-compiler",
        "TORCH_EXTENSIONS_DIR": str(folder / "cache"),
        "PYTHONPATH": support,
    }
    result = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **without, **variables},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Forward, both gradients and the fused form, in every specialization, and an invalid argument: exceptions pass from the
# library through libtorch.
CHECK = """
import sys
import torch, involution
from cases import Case, check_fused, check_operators
from involution import extension, libraries
if len(sys.argv) > 1:
    libraries.PACKAGED = __import__("pathlib").Path(sys.argv[1])
assert extension.load("cpu")
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for size, stride in (((7, 7), 1), ((7, 7), 2), ((3, 3), 1), ((2, 5), 2)):
        for group_channels, layout in ((16, "channels_last"), (16, "contiguous"), (5, "slice")):
            case = Case(2, 2, group_channels, (14, 15), size, (stride, stride), (3, 3), (1, 1), dtype, layout, layout)
            check_operators(torch.ops.involution, case)
            for hidden_channels in (20, 64):
                check_fused(torch.ops.involution, case, hidden_channels, True, True)
try:
    torch.ops.involution.involution2d(torch.ones(1, 4, 5, 5), torch.ones(1, 3, 1, 1, 5, 5), [1, 1], [0, 0], [1, 1])
    raise AssertionError("no error")
except (RuntimeError, ValueError) as error:  # depends on the release of torch
    assert "involution2d: input has 4 channels, expected a multiple of the number of groups, 3" in str(error)
print(involution.show_config())
"""


def test_auditwheel_accepts_it_for_glibc_2_28(wheel):
    """`make wheel` lets auditwheel name the platform, after it has checked all symbols that the library uses."""
    assert wheel.name.endswith("-py3-none-manylinux_2_28_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    libraries = ["involution/lib/involution_cpu.so", "involution/lib/involution_onnxruntime.so"]
    assert sorted(name for name in names if ".so" in name) == libraries


def test_the_linker_keeps_no_code_of_one_processor_for_all(objects):
    """Of a weak symbol, it keeps one copy, which may be that for AVX-512."""
    for name in ("kernels_avx2.o", "kernels_avx512.o"):
        output = subprocess.run(["nm", objects / name], capture_output=True, text=True, check=True).stdout
        symbols = [line.split()[-2:] for line in output.splitlines()]
        assert ["T"] == [kind for kind, _ in symbols if kind == "T"]  # the function that kernels.cpp calls
        assert {name for kind, name in symbols if kind in "WwVvu"} <= {"DW.ref.__gxx_personality_v0"}


def test_it_computes_without_a_compiler(environment, tmp_path):
    output = run(environment, tmp_path, CHECK)
    (library,) = environment.glob("lib/python*/site-packages/involution/lib/involution_cpu.so")
    assert f"cpu: compiled, came with the package ({library})" in output
    assert not (tmp_path / "cache").exists()


def test_onnxruntime_computes_without_a_compiler(environment, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    code = """
import torch
import onnx_nodes
from cases import TOLERANCE, Case, check_fused, plain_involution
from involution import runtimes
for dtype in (torch.float32, torch.float16):
    case = Case(2, 2, 16, (14, 15), (7, 7), (1, 1), (3, 3), (1, 1), dtype, "contiguous", "contiguous")
    input, kernel, _ = case.tensors()
    expected = plain_involution(input.double(), kernel.double(), *case.window)
    result = onnx_nodes.OnnxRuntime().involution2d(input, kernel, *case.window)
    assert (result.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    check_fused(onnx_nodes.OnnxRuntime(), case, 20, True, True)
print(runtimes.onnxruntime_library())
"""
    assert run(environment, tmp_path, code).endswith("involution/lib/involution_onnxruntime.so\n")
    assert not (tmp_path / "cache").exists()


def link(objects: Path, folder: Path, choice: str) -> Path:
    """Links the library again, with another choice of the kernels."""
    source = f"""
namespace involution {{
struct Kernels;
const Kernels* kernels_for_avx2();
const Kernels* kernels() {{ {choice} }}
bool multiplies_bfloat16() {{ return false; }}
}}
"""
    (folder / "choice.cpp").write_text(source)
    files = [objects / f"{name}.o" for name in ("kernels_avx2", "involution2d_cpu", "old_symbols")]
    libtorch = f"-L{Path(torch.__file__).parent / 'lib'}"
    command = ["c++", "-shared", "-fPIC", folder / "choice.cpp", *files, libtorch, "-ltorch_cpu"]
    subprocess.run([*command, "-o", folder / "involution_cpu.so"], check=True)
    return folder


@pytest.mark.skipif("avx2" not in Path("/proc/cpuinfo").read_text(), reason="needs AVX2")
def test_kernels_for_avx2_on_every_processor(environment, objects, tmp_path):
    """A processor with AVX-512 runs the others."""
    folder = link(objects, tmp_path, "return kernels_for_avx2();")
    assert f"({folder}/involution_cpu.so)" in run(environment, tmp_path, CHECK, folder)


def test_processors_without_avx2_compile(environment, objects, tmp_path):
    """There the library registers nothing."""
    code = """
import sys, torch, involution
from involution import libraries
torch.ops.load_library(sys.argv[1])
assert not torch.ops.involution.involution2d.default.has_kernel_for_dispatch_key("CPU")
assert libraries.packaged("cpu") is None
print(involution.show_config())
"""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(Path("/proc/cpuinfo").read_text().replace(" avx2", ""))
    prefix = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/cpuinfo && exec "$@"', str(cpuinfo))
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("this process must not mount")
    library = link(objects, tmp_path, "return nullptr;") / "involution_cpu.so"
    compiler = {"PATH": os.environ["PATH"], "CXX": "c++"}
    assert "cpu: to be compiled at first use" in run(environment, tmp_path, code, library, prefix=prefix, **compiler)


# Every step is a process of its own, which does not import torch again. It uses a stand-in for the sources, which
# compiles in a second.
STEPS = """
import os, sys
from pathlib import Path
import torch, involution
from involution import extension, libraries
libraries.CSRC, one = Path(sys.argv[1]), {"INVOLUTION_COMPILE": "1", "TORCH_EXTENSIONS_DIR": sys.argv[2]}

def in_a_process(function, **environment):
    if (process := os.fork()) == 0:
        os.environ.update(environment)
        print(function(), flush=True)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0

def loaded():
    extension.load("cpu")
    return extension._loaded["cpu"]

def planned():
    return involution.show_config().splitlines()[1]

in_a_process(planned)
in_a_process(loaded)
in_a_process(planned, **one)
in_a_process(loaded, **one)
in_a_process(lambda: extension.build("cpu"))
in_a_process(loaded)
"""


def test_a_library_for_this_machine_is_preferred(environment, tmp_path):
    """Compiled by INVOLUTION_COMPILE=1 at the first use, or by `python -m involution.build` earlier."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "involution2d_cpu.cpp").write_text(SOURCE)
    for name in ("kernels", "kernels_avx2", "kernels_avx512"):
        (sources / "cpu").mkdir(exist_ok=True)
        (sources / "cpu" / f"{name}.cpp").touch()
    compiler = {"PATH": os.environ["PATH"], "CXX": "c++"}
    output = run(environment, tmp_path, STEPS, sources, tmp_path / "one", **compiler)
    packaged, at_first, to_compile, compiled, built, at_last = output.splitlines()
    assert "cpu: compiled, came with the package, not loaded yet" in packaged
    assert at_first.endswith("involution/lib/involution_cpu.so")
    assert "cpu: to be compiled" in to_compile and compiled.startswith(str(tmp_path / "one"))
    assert built.startswith(str(tmp_path / "cache")) and at_last == built
