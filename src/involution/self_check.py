"""Compares all CUDA kernels with the definition, on small inputs: `python -m involution.self_check LIBRARY`.

This is the process that can crash: verification.py starts it, reads what it prints and starts it again for the rest.
It prints one JSON object per line: first the device and all checks, then for each check one before and one after it.
"""

import argparse
import datetime
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import families, reference, verification
from ._ops import ops


# Largest error allowed, relative to the largest value: rounding of the result, and of sums taken in float32.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# The fused operator may round its kernel to the dtype of the input.
_FUSED_TOLERANCE = 3
# With tensor cores, an infinity or NaN of the image reaches columns up to this far away, instead of 3
# (csrc/cuda/tensor_cores.cuh).
_TENSOR_CORE_SPREAD = 10


@dataclass(frozen=True)
class Geometry:
    """Sizes that are no multiples of the tiles, with two images and two groups."""

    group_channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    hidden_channels: int = 16  # of the fused operator

    @property
    def window(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.stride), list(self.padding), list(self.dilation)

    @property
    def output_size(self) -> list[int]:
        sizes = zip(self.size, self.kernel_size, self.stride, self.padding, self.dilation)
        return [
            (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, padding, dilation in sizes
        ]

    def __str__(self) -> str:
        return (
            f"2 x {2 * self.group_channels} x {self.size[0]} x {self.size[1]}, C/G {self.group_channels}, "
            f"K {self.kernel_size[0]} x {self.kernel_size[1]}, stride {self.stride}, padding {self.padding}, "
            f"dilation {self.dilation}, R {self.hidden_channels}"
        )


def _tiled(group_channels: int, k: int, stride: int, hidden_channels: int = 16) -> Geometry:
    padding = (k // 2, k // 2)
    return Geometry(group_channels, (17, 11), (k, k), (stride, stride), padding, (1, 1), hidden_channels)


_GEOMETRIES = {
    families.GENERAL: [
        _tiled(16, 7, 1),  # the sizes that are constants in the general kernels
        _tiled(16, 3, 2),
        Geometry(3, (13, 12), (5, 5), (1, 1), (4, 4), (2, 2), 5),
        Geometry(3, (9, 14), (2, 5), (2, 3), (4, 0), (3, 1), 5),
        Geometry(17, (9, 10), (9, 9), (1, 1), (4, 4), (1, 1), 3),  # more taps than one step of the fused kernel
    ],
    families.TILED: [
        _tiled(group_channels, k, stride, 40)  # more hidden channels than one step
        for group_channels, k, stride in itertools.product((16, 24), (7, 3), (1, 2))
    ],
    families.TENSOR_CORES: [_tiled(16, 7, 1), _tiled(16, 7, 1, 32)],
    families.CONVOLUTION: [_tiled(16, 7, 1, 64)],
}
_DTYPES = {
    families.GENERAL: list(TOLERANCES),
    families.TILED: [torch.float32, torch.bfloat16, torch.float16],
    families.TENSOR_CORES: [torch.bfloat16, torch.float16],
    families.CONVOLUTION: list(TOLERANCES),
}
FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Check:
    operator: str
    family: str
    dtype: torch.dtype
    memory_format: str  # a key of FORMATS
    geometry: Geometry

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, {self.memory_format}, {self.geometry}"

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype] * (_FUSED_TOLERANCE if self.operator == "involution2d_fused" else 1)


def checks(supported: Sequence[str]) -> Iterator[Check]:
    """All checks of these families. Those of the general kernels, the last resort, come first."""
    for family, operator in itertools.product(supported, families.OPERATORS):
        if family not in families.of(operator):
            continue
        formats = list(FORMATS) if family in (families.GENERAL, families.CONVOLUTION) else ["channels-last"]
        for dtype, memory_format, geometry in itertools.product(_DTYPES[family], formats, _GEOMETRIES[family]):
            yield Check(operator, family, dtype, memory_format, geometry)


def run(operators: Any, library: Path, check: Check, device: str) -> float:
    """Runs a check and returns the largest difference, relative to the largest value.

    Args:
        operators: the namespace of the library, in `torch.ops`.
        library: it has been loaded.
        device: such as "cuda:0".

    Raises:
        ValueError: another family ran, or the results do not agree. The message is the problem.
    """
    for operator in families.OPERATORS:  # convolution + involution calls another one, which then has to be general
        families.use_only(library, operator, check.family if operator == check.operator else families.GENERAL)
    arguments = make_arguments(check)
    on_device = [value.to(device) if isinstance(value, Tensor) else value for value in arguments]
    result = getattr(operators, check.operator)(*on_device)
    if device != "cpu":
        torch.cuda.synchronize(device)
    if (ran := families.last(library)) != check.family:
        raise ValueError(f"the kernels of the family {ran!r} ran")
    exact = [value.double() if isinstance(value, Tensor) else value for value in arguments]
    expected = getattr(reference, check.operator)(*exact)
    if result.dtype != check.dtype or result.shape != expected.shape:
        raise ValueError(f"the result is {result.dtype} {list(result.shape)}, expected {list(expected.shape)}")
    spreads = check.family == families.TENSOR_CORES and check.operator != "involution2d_kernel_grad"
    difference = largest_difference(result.cpu().double(), expected, _TENSOR_CORE_SPREAD if spreads else 0)
    if not difference <= check.tolerance:
        raise ValueError(f"relative difference {difference:.2g}, expected at most {check.tolerance:.2g}")
    return difference


def make_arguments(check: Check) -> list:
    """The arguments of the operator, on the CPU. A few values are NaN or infinite."""
    g = check.geometry
    channels, generated = 2 * g.group_channels, 2 * g.kernel_size[0] * g.kernel_size[1]  # of two groups
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        tensor = torch.randn(shape, generator=generator).to(check.dtype)
        return tensor.contiguous(memory_format=FORMATS[check.memory_format]) if tensor.dim() == 4 else tensor

    image, grad = random(2, channels, *g.size), random(2, channels, *g.output_size)
    image[0, 1, g.size[0] // 2, g.size[1] // 2] = grad[0, 1, -1, -1] = torch.nan
    if check.operator == "involution2d_kernel_grad":
        image[1, 0, 2, 3] = torch.inf
        return [grad, image, 2, list(g.kernel_size), *g.window]
    if check.operator == "involution2d_fused":
        features = random(2, g.hidden_channels, *g.output_size)
        features[1, 0, 0, 1] = torch.nan
        weight = random(generated, g.hidden_channels, 1, 1) / g.hidden_channels**0.5
        accumulation = reference.accumulation_dtype(check.dtype)
        scale, shift = (torch.randn(channels, generator=generator).to(accumulation) for _ in range(2))
        return [image, features, weight, random(generated), scale, shift, True, list(g.kernel_size), *g.window]
    kernel = random(2, generated, *g.output_size).unflatten(1, (2, *g.kernel_size))
    kernel[1, 1, 0, 0, 0, 0] = kernel[1, 1, 0, 0, -1, -1] = torch.inf  # the first one is multiplied by padding
    if check.operator == "involution2d_input_grad":
        return [grad, kernel, list(g.size), *g.window]
    return [image, kernel, *g.window]


def largest_difference(result: Tensor, expected: Tensor, spread: int) -> float:
    """The largest difference, relative to the largest value, between finite values.

    Infinities and NaN have to be equal. Up to `spread` columns from those that are expected, any value is right.

    Raises:
        ValueError: infinities or NaN differ.
    """
    finite = expected.isfinite()
    compared = finite
    if spread:
        compared = F.max_pool2d((~finite).double(), (1, 2 * spread + 1), 1, (0, spread)) == 0
        wrong = result[~finite].isfinite().sum() + (~result[compared].isfinite()).sum()
    else:
        others = torch.where(result.isfinite(), 0, result), torch.where(finite, 0, expected)
        wrong = (~torch.isclose(*others, equal_nan=True)).sum()
    if wrong:
        raise ValueError(f"{wrong} values are infinite or NaN where the definition is not, or the other way around")
    largest = expected[finite].abs().max().item()
    return ((result - expected)[compared].abs().max() / largest).item()


def _header(device: str, listed: list[Check]) -> dict:
    name, capability = verification.describe(device)
    return {
        "device": name,
        "compute_capability": capability,
        "driver": verification.driver_of(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "checked": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "checks": [[check.operator, check.family, str(check)] for check in listed],
    }


def _print(message: dict) -> None:
    print(json.dumps(message), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m involution.self_check", description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--namespace", default=ops.name, help="of the operators")
    parser.add_argument("--start", type=int, default=0, help="the first check")
    parser.add_argument("--skip", nargs=2, action="append", default=[], metavar=("OPERATOR", "FAMILY"))
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # for convolution + involution
    torch.ops.load_library(options.library)
    operators = getattr(torch.ops, options.namespace)
    torch.empty(1, device=options.device)  # fails before the first check if this process cannot use the device
    listed = list(checks(verification.supported_families(options.library, options.device)))
    _print(_header(options.device, listed))
    for n, check in enumerate(listed):
        if n < options.start or [check.operator, check.family] in options.skip:
            continue
        _print({"start": n})
        difference = problem = None
        try:
            difference = run(operators, options.library, check, options.device)
        except ValueError as error:
            problem = str(error)
        except torch.OutOfMemoryError as error:
            _print({"unavailable": str(error)})
            return 1
        except RuntimeError as error:  # of CUDA: nothing else can run in this process
            _print({"end": n, "difference": None, "problem": str(error).splitlines()[0]})
            return 1
        _print({"end": n, "difference": difference, "problem": problem})
    return 0


if __name__ == "__main__":
    sys.exit(main())
