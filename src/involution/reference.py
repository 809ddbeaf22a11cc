"""Involution by `unfold`: the definition that the compiled kernels and the loop over the taps are tested against.

It needs memory for the unfolded input, `Kh * Kw` times the input. Values of 16 bits are multiplied and summed in
float32. `involution2d_fused` combines any form of involution with the generation of its kernel.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are accumulated in: float64 for float64, float32 for all others."""
    return torch.promote_types(dtype, torch.float32)


def _unfold(input: Tensor, groups: int, kernel_size, output_size, stride, padding, dilation) -> Tensor:
    """(B, C, H, W) -> (B, G, C/G, Kh, Kw, H', W'), in the accumulation dtype."""
    padded = F.pad(input.to(accumulation_dtype(input.dtype)), (padding[1], padding[1], padding[0], padding[0]))
    columns = F.unfold(padded, kernel_size, dilation, stride=stride)
    return columns.view(input.shape[0], groups, input.shape[1] // groups, *kernel_size, *output_size)


def involution2d(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """Sums kernel * unfolded input over the window (arXiv 2103.06255, equation 4): (B, C, H', W')."""
    groups, kernel_size, output_size = kernel.shape[1], kernel.shape[2:4], kernel.shape[4:]
    columns = _unfold(input, groups, kernel_size, output_size, stride, padding, dilation)
    return (kernel.unsqueeze(2) * columns).sum((3, 4)).flatten(1, 2).to(input.dtype)


def involution(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """The definition in one, two or three dimensions: (B, C, *sizes), (B, G, *kernel, *outputs) -> (B, C, *outputs).

    Each dimension in turn is padded and divided into windows. The involution is the sum of kernel * windows.
    """
    groups, dimensions = kernel.shape[1], len(stride)
    windows = input.to(accumulation_dtype(input.dtype)).unflatten(1, (groups, -1))
    for n in range(dimensions):
        extent = dilation[n] * (kernel.shape[2 + n] - 1) + 1
        last = dimensions - n - 1
        windows = F.pad(windows, (0, 0) * (n + last) + (padding[n], padding[n]))
        windows = windows.unfold(3 + n, extent, stride[n])[..., :: dilation[n]]
    # (B, G, C/G, *outputs, *kernel)
    taps = kernel.movedim(list(range(2, 2 + dimensions)), list(range(-dimensions, 0)))
    output = (taps.unsqueeze(2) * windows).sum(list(range(-dimensions, 0)))
    return output.flatten(1, 2).to(input.dtype)


def involution2d_input_grad(grad_output: Tensor, kernel: Tensor, input_size, stride, padding, dilation) -> Tensor:
    """The gradient of the input: (B, C, H, W) with `input_size` = (H, W)."""
    grad = grad_output.to(accumulation_dtype(grad_output.dtype)).unflatten(1, (kernel.shape[1], -1))
    columns = (kernel.unsqueeze(2) * grad[:, :, :, None, None]).flatten(5).flatten(1, 4)
    return F.fold(columns, input_size, kernel.shape[2:4], dilation, padding, stride).to(grad_output.dtype)


def involution2d_kernel_grad(
    grad_output: Tensor, input: Tensor, groups: int, kernel_size, stride, padding, dilation
) -> Tensor:
    """The gradient of the kernel: (B, G, Kh, Kw, H', W')."""
    columns = _unfold(input, groups, kernel_size, grad_output.shape[2:], stride, padding, dilation)
    return (grad_output.unflatten(1, (groups, -1))[:, :, :, None, None] * columns).sum(2).to(input.dtype)


def generated_kernel(features: Tensor, weight: Tensor, bias: Tensor | None, kernel_size) -> Tensor:
    """The last step of the kernel generation (equation 6): (B, R, H', W') -> (B, G, Kh, Kw, H', W')."""
    kernel, groups = F.conv2d(features, weight, bias), weight.shape[0] // math.prod(kernel_size)
    # Not `unflatten`, because `torch.jit.trace` would record the image size as a constant.
    return kernel.view(kernel.shape[0], groups, *kernel_size, kernel.shape[2], kernel.shape[3])


def generated_kernel_gradients(
    grad_kernel: Tensor, features: Tensor, weight: Tensor, needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    """The gradients of features, weight and bias, each None unless `needs` asks for it."""
    grad = grad_kernel.reshape(features.shape[0], weight.shape[0], *features.shape[2:])
    return torch.ops.aten.convolution_backward(
        grad, features, weight, [weight.shape[0]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, list(needs)
    )


def involution2d_fused(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias,
    scale,
    shift,
    relu: bool,
    kernel_size,
    stride,
    padding,
    dilation,
    involution2d: Callable[..., Tensor] = involution2d,
) -> Tensor:
    """`involution2d` with a generated kernel, followed by scale, shift and ReLU: (B, C, H', W')."""
    output = involution2d(input, generated_kernel(features, weight, bias, kernel_size), stride, padding, dilation)
    if scale is not None:
        output = output * scale[:, None, None] + shift[:, None, None]
    return (output.relu() if relu else output).to(input.dtype)
