"""Every C++ and CUDA header compiles alone."""

import re
import shutil
import subprocess

import pytest
from torch.utils import cpp_extension


# Headers, and templates of theirs: what a template lacks shows only where it is instantiated.
ALONE = {
    "cpu_fused.h": ["forward_kernel<float>", "fused_kernel<float>"],
    "cpu_input_grad.h": ["input_grad_kernel<float>"],
    "cpu_kernel_grad.h": ["kernel_grad_kernel<float>"],
    "cuda_tensor_cores.cuh": [
        f"tensor_core_{name}_kernel<at::Half>" for name in ("forward", "input_grad", "kernel_grad", "fused")
    ],
    "cuda_tiled_kernel_grad.cuh": [
        f"tiled_{name}_kernel<float, 7, 1>" for name in ("forward", "input_grad", "kernel_grad", "fused")
    ],
    "cuda_tiled_launch.cuh": [],  # instantiates the kernels itself
    "involution2d_kernels.cuh": [],
    "library.h": [],
}


def test_every_header_is_compiled_alone(root):
    """Itself, or at the top of one that includes it before anything else."""
    folder = root / "src/involution/csrc"
    headers = {path.name: path.read_text() for path in [*folder.glob("*.h"), *folder.glob("*.cuh")]}
    covered = set(ALONE)
    while True:
        first = {re.search(r'#include [<"](.+)[>"]', headers[name])[1] for name in covered}
        if not first & headers.keys() - covered:
            break
        covered |= first & headers.keys()
    assert covered == headers.keys()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("header", ALONE)
def test_header_compiles_alone(root, header, tmp_path):
    source = tmp_path / "alone.cpp"
    # The shim has what cuda_common.cuh asks of whoever includes it.
    shim = ['#include "cuda_shim.h"'] if header.endswith(".cuh") else []
    uses = [f"const auto use_{n} = &involution::{name};" for n, name in enumerate(ALONE[header])]
    source.write_text("\n".join([*shim, f'#include "{header}"', *uses, ""]))
    folders = [root / "src/involution/csrc", root / "tests/involution", *cpp_extension.include_paths()]
    command = ["c++", "-std=c++20", "-w", "-fsyntax-only", *(f"-I{folder}" for folder in folders), source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
