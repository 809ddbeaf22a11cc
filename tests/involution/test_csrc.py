"""Every C++ and CUDA header compiles alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension


CSRC = Path(__file__).parents[2] / "src/involution/csrc"
# Sources that other tests compile.
SOURCES = {CSRC / "involution2d_cpu.cpp", CSRC / "cpu/kernels.cpp", Path(__file__).with_name("cuda_on_cpu.cpp")}
# Headers that are compiled here, and templates to instantiate, because only this shows what their bodies lack.
COMPILED = {
    "checks.h": [
        "forward_geometry", "input_grad_geometry", "kernel_grad_geometry", "fused_geometry", "fused_grad_geometry",
    ],
    "cpu/small_groups.h": ["forward_small_groups<float>"],
    "cpu/fused.h": ["forward_kernel<float>", "fused_kernel<float>"],
    "cpu/fused_grad.h": ["fused_grad_kernel<float>"],
    "cpu/implementation.h": ["kKernels"],
    "cpu/input_grad.h": ["input_grad_kernel<float>"],
    "cpu/kernel_grad.h": ["kernel_grad_kernel<float>"],
    "cpu/planes.h": ["forward_planes<float>"],
    "cpu/vectors.h": ["load_lanes<float, float>"],
    "schemas.h": ["define_operators"],
    "cuda/families.cuh": ["is_allowed", "record_family"],
    "cuda/tensor_cores.cuh": [
        f"tensor_core_{name}_kernel<at::Half>" for name in ("forward", "input_grad", "kernel_grad", "fused")
    ],
    "cuda/tiled_kernel_grad.cuh": [
        f"tiled_{name}_kernel<float, 7, 1>" for name in ("forward", "input_grad", "kernel_grad", "fused")
    ],
}  # fmt: skip


def first_include(path: Path) -> Path:
    """Except the shim, which defines what cuda/common.cuh requires of the file that includes it."""
    names = [name for name in re.findall(r'#include [<"](.+)[>"]', path.read_text()) if name != "cuda_shim.h"]
    folder = CSRC if path in SOURCES else path.parent
    return (folder / names[0]).resolve()


def test_every_header_is_compiled_alone():
    """Itself, or as the first include of a file that is compiled."""
    headers = {path for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh")}
    alone = {CSRC / name for name in COMPILED}
    files = alone | SOURCES
    while files:
        files = {first_include(path) for path in files} & headers - alone
        alone |= files
    assert alone == headers - {CSRC / "library.h"}  # which has only macros


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("header", COMPILED)
def test_header_compiles_alone(root, header, tmp_path):
    source = tmp_path / "alone.cpp"
    shim = ['#include "cuda_shim.h"'] if header.endswith(".cuh") else []
    uses = [f"const auto use_{n} = &involution::{name};" for n, name in enumerate(COMPILED[header])]
    source.write_text("\n".join([*shim, f'#include "{header}"', *uses, ""]))
    folders = [CSRC, root / "tests/involution", *cpp_extension.include_paths()]
    command = ["c++", "-std=c++20", "-w", "-fsyntax-only", *(f"-I{folder}" for folder in folders), source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
