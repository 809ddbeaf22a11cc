"""The CUDA kernels, compiled for the host (tests/involution/cuda_on_cpu.cpp). An overflow of an int ends the process."""

from pathlib import Path

import torch
from torch.utils import cpp_extension


NAMESPACE = "involution_cuda_on_cpu"


def load(root: Path) -> Path:
    """Compiles the library, unless it exists, loads it, and returns its path."""
    cpp_extension.load(
        NAMESPACE,
        [str(root / "tests/involution/cuda_on_cpu.cpp")],
        extra_cflags=["-Og", "-fsanitize=signed-integer-overflow", "-fsanitize-undefined-trap-on-error"],
        extra_include_paths=[str(root / "src/involution/csrc")],
        is_python_module=False,
    )
    return Path(next(path for path in torch.ops.loaded_libraries if NAMESPACE in path))
