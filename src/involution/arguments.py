"""Checks of arguments. Each error names the function, the argument, the given value and the expected one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import autocast
from .reference import accumulation_dtype


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LIMIT = 2**31  # for strides, paddings and dilations, so that no product of them overflows

Window = tuple[list[int], list[int], list[int]]  # stride, padding, dilation


def pair(function: str, name: str, value: int | Sequence[int], minimum: int) -> list[int]:
    """Returns an int or a pair of ints as a pair."""
    values = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else None
    if values is None or len(values) != 2 or not all(isinstance(v, int) and minimum <= v < _LIMIT for v in values):
        raise ValueError(
            f"{function}: {name} is {value!r}, expected an int >= {minimum} and < 2**31, or a pair of them"
        )
    return values


def window(
    function: str,
    kernel_size: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | None,
    dilation: int | Sequence[int],
) -> Window:
    """Returns stride, padding and dilation as pairs; the padding None becomes "same" padding."""
    stride, dilation = pair(function, "stride", stride, 1), pair(function, "dilation", dilation, 1)
    if padding is not None:
        return stride, pair(function, "padding", padding, 0), dilation
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(
            f"{function}: padding is None, which requires odd kernel sizes, but the kernel size is "
            f"{kernel_size[0]} x {kernel_size[1]}. Give an explicit padding"
        )
    return stride, [dilation[n] * (kernel_size[n] // 2) for n in range(2)], dilation


def check_types(function: str, **tensors: Tensor | None) -> None:
    """Raises TypeError for arguments that are neither tensors nor None."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: {name} is {type(tensor).__name__}, expected a torch.Tensor")


def check_pair(function: str, input: Tensor, kernel: Tensor, stride, padding, dilation) -> None:
    """Checks an input and a kernel of six dimensions."""
    _check_dtypes_and_devices(function, input=input, kernel=kernel)
    size = output_size(function, input, kernel.shape[1], kernel.shape[2:4], stride, padding, dilation)
    if kernel.shape[0] != input.shape[0] or kernel.shape[4] != size[0] or kernel.shape[5] != size[1]:
        expected = (input.shape[0], *kernel.shape[1:4], *size)
        raise ValueError(
            f"{function}: kernel has shape {tuple(kernel.shape)}, expected {expected} (B, G, Kh, Kw, H', W') for "
            f"input {tuple(input.shape)}, stride {stride}, padding {padding}, dilation {dilation}"
        )


def check_generation(
    function: str, input: Tensor, features: Tensor, weight: Tensor, bias, kernel_size, stride, padding, dilation
) -> list[int]:
    """Checks an input and the tensors that a kernel is generated from. Returns the size of the output, [H', W']."""
    _check_dtypes_and_devices(
        function, input=input, features=features, weight=weight, **({} if bias is None else {"bias": bias})
    )
    taps = kernel_size[0] * kernel_size[1]
    if features.dim() != 4:
        raise ValueError(f"{function}: features has {features.dim()} dimensions, expected 4 (B, R, H', W')")
    if weight.dim() != 4 or weight.shape[0] % taps != 0 or tuple(weight.shape[1:]) != (features.shape[1], 1, 1):
        raise ValueError(
            f"{function}: weight has shape {tuple(weight.shape)}, expected (G * {taps}, {features.shape[1]}, 1, 1) "
            f"for kernel_size {kernel_size} and features {tuple(features.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{function}: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    size = output_size(function, input, weight.shape[0] // taps, kernel_size, stride, padding, dilation)
    if features.shape[0] != input.shape[0] or features.shape[2] != size[0] or features.shape[3] != size[1]:
        raise ValueError(
            f"{function}: features has shape {tuple(features.shape)}, expected "
            f"{(input.shape[0], features.shape[1], *size)} (B, R, H', W') for input {tuple(input.shape)}, stride "
            f"{stride}, padding {padding}, dilation {dilation}"
        )
    return size


def check_scale_and_shift(function: str, input: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    """Checks the affine map that follows an involution."""
    if scale is None and shift is None:
        return
    if scale is None or shift is None:
        given, missing = ("shift", "scale") if scale is None else ("scale", "shift")
        raise ValueError(f"{function}: {missing} is None, expected a tensor because {given} is given")
    check_channel_vectors(function, input, (accumulation_dtype(input.dtype),), scale=scale, shift=shift)


def check_channel_vectors(
    function: str, input: Tensor, dtypes: tuple[torch.dtype, ...], **vectors: Tensor | None
) -> None:
    """Checks tensors, or None, with one value for each channel of `input`, in one of these dtypes."""
    for name, vector in vectors.items():
        if vector is None:
            continue
        if tuple(vector.shape) != (input.shape[1],):
            raise ValueError(f"{function}: {name} has shape {tuple(vector.shape)}, expected ({input.shape[1]},)")
        if vector.dtype not in dtypes:
            raise TypeError(
                f"{function}: {name} has dtype {vector.dtype}, expected {' or '.join(map(str, dtypes))} for an input "
                f"of {input.dtype}"
            )
        _check_device(function, name, vector, input)


def _check_dtypes_and_devices(function: str, input: Tensor, **others: Tensor) -> None:
    for name, tensor in {"input": input, **others}.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, expected one of {DTYPES}")
    for name, tensor in others.items():
        if tensor.dtype != input.dtype and not autocast.is_enabled(input.device.type):
            raise TypeError(
                f"{function}: {name} has dtype {tensor.dtype}, expected the dtype of input, {input.dtype} "
                "(they may differ only under torch.autocast)"
            )
        _check_device(function, name, tensor, input)


def _check_device(function: str, name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise ValueError(f"{function}: {name} is on {tensor.device}, expected the device of input, {input.device}")


def output_size(function: str, input: Tensor, groups, kernel_size, stride, padding, dilation) -> list[int]:
    """Returns [H', W'] of an input (B, C, H, W)."""
    if input.dim() != 4:
        raise ValueError(f"{function}: input has {input.dim()} dimensions, expected 4 (B, C, H, W)")
    if groups == 0 or input.shape[1] % groups != 0:
        raise ValueError(
            f"{function}: input has {input.shape[1]} channels, expected a multiple of the number of groups, {groups}"
        )
    if kernel_size[0] == 0 or kernel_size[1] == 0:
        raise ValueError(f"{function}: kernel has size {kernel_size[0]} x {kernel_size[1]}, expected at least 1 x 1")
    sizes = []
    for n, side in enumerate(("height", "width")):
        size, extent = input.shape[2 + n] + 2 * padding[n], dilation[n] * (kernel_size[n] - 1) + 1
        if size < extent:
            raise ValueError(
                f"{function}: input has {side} {size} with its padding, expected at least {extent}, the {side} of the "
                "window"
            )
        sizes.append((size - extent) // stride[n] + 1)
    return sizes
