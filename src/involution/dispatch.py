"""Calls the operators, or an equivalent form for transforms and tracers that do not support registered operators, and
for `torch.compile` on a device without compiled kernels."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import (
    autocast,
    decomposition,
    extension,
    reference,
    registration,  # noqa: F401, registers the operators
    sharding,
    taps,
    volumes,
)
from ._ops import ops
from .transforms import bilinear, is_functionalized, is_transformed


def involution2d(input: Tensor, kernel: Tensor, *window) -> Tensor:
    """(B, C, H, W) and (B, G, Kh, Kw, H', W') -> (B, C, H', W')."""
    if (form := _replacement(kernel)) is not None:
        return _call_cast(form, input.device.type, (input, kernel), *window)
    if type(input) is not Tensor:
        sharding.prepare(input)
    return ops.involution2d.default(input, kernel, *window)


def involution2d_fused(input: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, *arguments) -> Tensor:
    """(B, C, H, W) and the features (B, R, H', W') -> (B, C, H', W')."""
    if (form := _replacement(features)) is not None:
        composition = partial(reference.involution2d_fused, involution2d=form)
        return _call_cast(composition, input.device.type, (input, features, weight, bias), *arguments)
    if type(input) is not Tensor:
        sharding.prepare(input)
    return ops.involution2d_fused.default(input, features, weight, bias, *arguments)


def involution1d(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """The 2-D involution of images of height 1, which are views."""
    images, kernel = input.unsqueeze(2), kernel.unsqueeze(2).unsqueeze(4)
    return involution2d(images, kernel, [1, *stride], [0, *padding], [1, *dilation]).squeeze(2)


def involution3d(input: Tensor, kernel: Tensor, *window) -> Tensor:
    """The sum of 2-D involutions, one for each tap of the depth (volumes.py)."""
    function = partial(bilinear, "involution3d")
    if is_traced():
        function = partial(volumes.involution3d, involution2d=involution2d)
    return _call_cast(function, input.device.type, (input, kernel), *window)


def is_traced() -> bool:
    """Whether a compiler or a tracer records the operators that are called: most support no autograd functions."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_functionalized()


def _replacement(like_output: Tensor) -> Callable | None:
    """The form of `involution2d` that is called instead of the operator, or None if the operator is called.

    The last two dimensions of `like_output` are the height and width of the output.
    """
    if is_transformed():
        return partial(bilinear, "involution2d")
    if _is_left_to_compiler(like_output):
        return taps.traced_involution2d
    if _is_traced_for_onnx():
        return decomposition.unfolded_involution2d
    return None


def _is_left_to_compiler(like_output: Tensor) -> bool:
    """Whether `torch.compile` traces with fixed shapes, on a device without compiled kernels.

    Inductor fuses the loop over the taps. With a symbolic height or width, tracing it would take minutes.
    """
    if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # imports SymPy

    pixels = like_output.shape[-2] * like_output.shape[-1]
    return has_static_value(pixels) and not _has_compiled_kernels(like_output.device.type)


def _has_compiled_kernels(device_type: str) -> bool:
    return extension.load(device_type)


# What the decorator `torch.compiler.assume_constant_result` does, which would import Dynamo with this package.
_has_compiled_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_traced_for_onnx() -> bool:
    """Whether the older ONNX exporter, which supports only PyTorch's own operators, records a trace."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def _call_cast(function: Callable, device_type: str, tensors: tuple[Tensor | None, ...], *arguments) -> Tensor:
    """Calls `function` with `tensors` cast as the operators' autocast kernels cast them."""
    if autocast.is_enabled(device_type):
        function = autocast.casting(function, len(tensors))
    return function(*tensors, *arguments)
