"""The families of CUDA kernels: which operators have which, and how to allow or forbid one (csrc/cuda/families.cuh).

A family that is forbidden is replaced by the next one: tensor cores by "tiled", and that by "general", which supports
all arguments and cannot be forbidden. Tensor cores run only if the environment variable INVOLUTION_TENSOR_CORES is 1.
The fused operator also has the form "convolution + involution", for many hidden channels.
"""

import ctypes
import os
from pathlib import Path


GENERAL, TILED, TENSOR_CORES = "general", "tiled", "tensor_cores"
CONVOLUTION = "convolution + involution"
OPERATORS = ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad", "involution2d_fused")
FAMILIES = (GENERAL, TILED, TENSOR_CORES, CONVOLUTION)


def of(operator: str) -> tuple[str, ...]:
    """The families that an operator has."""
    return FAMILIES if operator == "involution2d_fused" else FAMILIES[:3]


def allow(library: Path, operator: str, family: str, allowed: bool = True) -> None:
    """Allows or forbids a family for all later calls of an operator in this process.

    Args:
        library: a library for CUDA that this process has loaded.
        operator: one of `OPERATORS`.
        family: one of `of(operator)`, except "general".

    Raises:
        ValueError: there is no such operator or family, or it cannot be forbidden.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator is {operator!r}, expected one of {OPERATORS}")
    if family == GENERAL or family not in of(operator):
        raise ValueError(f"family is {family!r}, expected one of {of(operator)[1:]} for {operator}")
    _functions(library).involution_allow(operator.encode(), family.encode(), int(allowed))


def use_only(library: Path, operator: str, family: str) -> None:
    """Allows this family of an operator, and forbids all others that can be forbidden."""
    for other in of(operator)[1:]:
        allow(library, operator, other, other == family)


def has_tensor_cores(library: Path) -> bool:
    """Whether the code that the current device runs has the tensor-core kernels."""
    return bool(_functions(library).involution_has_tensor_cores())


def last(library: Path) -> str:
    """The family of the last kernel that an operator launched in this thread, or "" if there was none."""
    return _functions(library).involution_last_family().decode()


def _functions(library: Path) -> ctypes.CDLL:
    functions = ctypes.CDLL(os.fspath(library))  # which is loaded already: this finds it again
    functions.involution_allow.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    functions.involution_last_family.restype = ctypes.c_char_p
    return functions
