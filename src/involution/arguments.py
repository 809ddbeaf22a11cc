"""Checks of arguments. Each error names the function, the argument, the given value and the expected one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import autocast
from .reference import accumulation_dtype


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LIMIT = 2**31  # for strides, paddings and dilations, so that no product of them overflows

Window = tuple[list[int], list[int], list[int]]  # stride, padding, dilation

# By the number of dimensions that an involution slides over.
_SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_INPUT = {1: "(B, C, L)", 2: "(B, C, H, W)", 3: "(B, C, D, H, W)"}
_KERNEL = {1: "(B, G, K, L')", 2: "(B, G, Kh, Kw, H', W')", 3: "(B, G, Kd, Kh, Kw, D', H', W')"}
FEATURES = "(B, R, H', W')"


def per_dimension(
    function: str, name: str, value: int | Sequence[int], minimum: int, dimensions: int = 2
) -> list[int]:
    """Returns `value`, an int or a sequence, as a list with one int per dimension; ValueError if it is invalid."""
    if isinstance(value, int):
        values = [value] * dimensions
    else:
        values = list(value) if isinstance(value, Sequence) else []
    if len(values) != dimensions or not all(isinstance(v, int) and minimum <= v < _LIMIT for v in values):
        many = {1: "a sequence of one", 2: "a pair of them", 3: "a sequence of three"}[dimensions]
        raise ValueError(f"{function}: {name} is {value!r}, expected an int >= {minimum} and < 2**31, or {many}")
    return values


def window(
    function: str,
    kernel_size: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | None,
    dilation: int | Sequence[int],
) -> Window:
    """Returns stride, padding and dilation as lists; the padding None becomes "same" padding."""
    dimensions = len(kernel_size)
    stride = per_dimension(function, "stride", stride, 1, dimensions)
    dilation = per_dimension(function, "dilation", dilation, 1, dimensions)
    if padding is not None:
        return stride, per_dimension(function, "padding", padding, 0, dimensions), dilation
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(
            f"{function}: padding is None, which requires odd kernel sizes, but the kernel size is "
            f"{_by(kernel_size)}. Give an explicit padding"
        )
    return stride, [dilation[n] * (kernel_size[n] // 2) for n in range(dimensions)], dilation


def check_types(function: str, **tensors: Tensor) -> None:
    """Raises TypeError for arguments that are not tensors."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: {name} is {type(tensor).__name__}, expected a torch.Tensor")


def check_optional_types(function: str, **tensors: Tensor | None) -> None:
    """Raises TypeError for arguments that are neither tensors nor None."""
    check_types(function, **{name: tensor for name, tensor in tensors.items() if tensor is not None})


def is_batched(function: str, input: Tensor, dimensions: int, name: str, other: Tensor, shape: str) -> bool:
    """Whether an input, (B, C, ...) or (C, ...), and another tensor have a batch.

    `shape` is that of the other tensor with a batch, such as "(B, R, H', W')".
    """
    batched, number = dimensions + 2, shape.count(",") + 1
    if (input.dim(), other.dim()) not in ((batched, number), (batched - 1, number - 1)):
        without = [_without_batch(text) for text in (_INPUT[dimensions], shape)]
        raise ValueError(
            f"{function}: input has {input.dim()} dimensions and {name} has {other.dim()} dimensions, expected "
            f"{batched} {_INPUT[dimensions]} and {number} {shape}, or without batch {batched - 1} {without[0]} and "
            f"{number - 1} {without[1]}"
        )
    return input.dim() == batched


def is_pair_batched(function: str, input: Tensor, kernel: Tensor, dimensions: int) -> bool:
    """Whether an input and a kernel have a batch. Raises ValueError if only one of them has."""
    return is_batched(function, input, dimensions, "kernel", kernel, _KERNEL[dimensions])


def check_pair(function: str, input: Tensor, kernel: Tensor, stride, padding, dilation) -> None:
    """Checks an input and a kernel, both with or both without a batch."""
    _check_dtypes_and_devices(function, input=input, kernel=kernel)
    dimensions = len(stride)
    *batch, groups = kernel.shape[: -2 * dimensions]
    kernel_size = kernel.shape[-2 * dimensions : -dimensions]
    size = output_size(function, input, groups, kernel_size, stride, padding, dilation)
    # Element by element, because the sizes may be symbolic.
    given = (*batch, *kernel.shape[-dimensions:])
    needed = (*input.shape[: -1 - dimensions], *size)
    if any(one != other for one, other in zip(given, needed)):
        expected = (*input.shape[: -1 - dimensions], groups, *kernel_size, *size)
        shape = _KERNEL[dimensions] if batch else _without_batch(_KERNEL[dimensions])
        raise ValueError(
            f"{function}: kernel has shape {tuple(kernel.shape)}, expected {expected} {shape} for "
            f"input {tuple(input.shape)}, stride {stride}, padding {padding}, dilation {dilation}"
        )


def check_generation(
    function: str, input: Tensor, features: Tensor, weight: Tensor, bias, kernel_size, stride, padding, dilation
) -> list[int]:
    """Checks an input and the tensors that a kernel is generated from. Returns the size of the output, [H', W'].

    Input and features both have a batch, or neither of them does.
    """
    _check_dtypes_and_devices(
        function, input=input, features=features, weight=weight, **({} if bias is None else {"bias": bias})
    )
    taps = kernel_size[0] * kernel_size[1]
    batch, hidden = input.shape[:-3], features.shape[-3]
    if weight.dim() != 4 or weight.shape[0] % taps != 0 or tuple(weight.shape[1:]) != (hidden, 1, 1):
        raise ValueError(
            f"{function}: weight has shape {tuple(weight.shape)}, expected (G * {taps}, {hidden}, 1, 1) "
            f"for kernel_size {kernel_size} and features {tuple(features.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{function}: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    size = output_size(function, input, weight.shape[0] // taps, kernel_size, stride, padding, dilation)
    expected = (*batch, hidden, *size)
    if any(one != other for one, other in zip(features.shape, expected)):
        shape = FEATURES if batch else _without_batch(FEATURES)
        raise ValueError(
            f"{function}: features has shape {tuple(features.shape)}, expected {expected} {shape} for input "
            f"{tuple(input.shape)}, stride {stride}, padding {padding}, dilation {dilation}"
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
        if tuple(vector.shape) != (input.shape[-3],):
            raise ValueError(f"{function}: {name} has shape {tuple(vector.shape)}, expected ({input.shape[-3]},)")
        if vector.dtype not in dtypes:
            expected = " or ".join(map(str, dict.fromkeys(dtypes)))  # each dtype once
            raise TypeError(
                f"{function}: {name} has dtype {vector.dtype}, expected {expected} for an input of {input.dtype}"
            )
        _check_device(function, name, vector, input)


def _check_dtypes_and_devices(function: str, input: Tensor, **others: Tensor) -> None:
    for name, tensor in {"input": input, **others}.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, expected one of {DTYPES}")
        if tensor.layout != torch.strided:
            raise TypeError(f"{function}: {name} has layout {tensor.layout}, expected torch.strided, a dense tensor")
    for name, tensor in others.items():
        is_cast = autocast.is_enabled(input.device.type) and torch.float64 not in (tensor.dtype, input.dtype)
        if tensor.dtype != input.dtype and not is_cast:
            raise TypeError(
                f"{function}: {name} has dtype {tensor.dtype}, expected the dtype of input, {input.dtype} "
                "(they may differ only under torch.autocast, which does not cast float64)"
            )
        _check_device(function, name, tensor, input)


def _check_device(function: str, name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise ValueError(f"{function}: {name} is on {tensor.device}, expected the device of input, {input.device}")


def output_size(function: str, input: Tensor, groups, kernel_size, stride, padding, dilation) -> list[int]:
    """Returns the size of the output, such as [H', W'], for an input such as (B, C, H, W) or (C, H, W)."""
    dimensions = len(kernel_size)
    channels = input.shape[-1 - dimensions]
    if groups == 0 or channels % groups != 0:
        raise ValueError(
            f"{function}: input has {channels} channels, expected a multiple of the number of groups, {groups}"
        )
    if 0 in kernel_size:
        least = _by([1] * dimensions)
        raise ValueError(f"{function}: kernel has size {_by(kernel_size)}, expected at least {least}")
    sizes = []
    for n, side in enumerate(_SIDES[dimensions]):
        size = input.shape[n - dimensions] + 2 * padding[n]
        extent = dilation[n] * (kernel_size[n] - 1) + 1
        if size < extent:
            raise ValueError(
                f"{function}: input has {side} {size} with its padding, expected at least {extent}, the {side} of the "
                "window"
            )
        sizes.append((size - extent) // stride[n] + 1)
    return sizes


def _by(sizes: Sequence[int]) -> str:
    """Sizes as text, such as "7 x 7"."""
    return " x ".join(map(str, sizes))


def _without_batch(shape: str) -> str:
    return shape.replace("B, ", "")
