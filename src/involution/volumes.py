"""3-D involution, and its two gradients, as sums of 2-D involutions: one for each tap of the depth.

For one tap of the depth, each frame of the output is the 2-D involution of one frame of the input. All frames are one
batch of the 2-D operator. This is a view of the volume, without a copy, if the batch has one sample, or in the format
channels_last_3d if all frames take part.

Values of 16 bits are multiplied and summed in float32, as in the 2-D operator, over the taps of the depth too. For
this, one tap of the kernel at a time is converted. The depth is padded with zero frames, not cut, so that infinities
of the kernel reach the output over the padding, as in the definition.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._ops import ops
from .reference import accumulation_dtype
from .taps import is_channels_last


def involution3d(
    input: Tensor, kernel: Tensor, stride, padding, dilation, involution2d: Callable | None = None
) -> Tensor:
    """(B, C, D, H, W) and (B, G, Kd, Kh, Kw, D', H', W') -> (B, C, D', H', W'), by the operator, or a form of it."""
    involution2d = involution2d or ops.involution2d.default
    padded = _padded(input.to(accumulation_dtype(input.dtype)), padding[0])
    window = stride[1:], padding[1:], dilation[1:]
    # Under `torch.compile`, a term may be a view from an autograd function (taps.py): nothing can be added in place.
    add = torch.add if torch.compiler.is_compiling() else Tensor.add_
    output = None
    for frames, tap in zip(_frames(kernel.shape[2], kernel.shape[5], stride, dilation), kernel.unbind(2)):
        term = involution2d(_folded(padded[:, :, frames]), _folded(tap.to(padded.dtype)), *window)
        output = term if output is None else add(output, term)
    assert output is not None  # a kernel has at least one tap
    output = output.unflatten(0, (input.shape[0], kernel.shape[5])).movedim(1, 2)
    return output.to(input.dtype).contiguous(memory_format=_memory_format(input))


def involution3d_input_grad(grad_output: Tensor, kernel: Tensor, input_size, stride, padding, dilation) -> Tensor:
    """The gradient of the input: (B, C, D, H, W) with `input_size` = (D, H, W)."""
    (depth, *size), shape = input_size, (*grad_output.shape[:2], input_size[0] + 2 * padding[0], *input_size[1:])
    dtype, memory_format = accumulation_dtype(grad_output.dtype), _memory_format(grad_output)
    padded = torch.empty(shape, dtype=dtype, device=grad_output.device, memory_format=memory_format).zero_()
    grad = _folded(grad_output.to(dtype))
    window = stride[1:], padding[1:], dilation[1:]
    for frames, tap in zip(_frames(kernel.shape[2], kernel.shape[5], stride, dilation), kernel.unbind(2)):
        term = ops.involution2d_input_grad.default(grad, _folded(tap.to(dtype)), size, *window)
        padded[:, :, frames] += term.unflatten(0, (grad_output.shape[0], kernel.shape[5])).movedim(1, 2)
    return padded[:, :, padding[0] : padding[0] + depth].to(grad_output.dtype).contiguous(memory_format=memory_format)


def involution3d_kernel_grad(
    grad_output: Tensor, input: Tensor, groups: int, kernel_size, stride, padding, dilation
) -> Tensor:
    """The gradient of the kernel: (B, G, Kd, Kh, Kw, D', H', W')."""
    (batch, _, depth, *size), padded = grad_output.shape, _padded(input, padding[0])
    # As a 1x1 convolution returns it in the memory format of the input.
    if _memory_format(input) == torch.channels_last_3d:
        result = input.new_empty((batch, depth, *size, groups, *kernel_size)).permute(0, 4, 5, 6, 7, 1, 2, 3)
    else:
        result = input.new_empty((batch, groups, *kernel_size, depth, *size))
    grad = _folded(grad_output)
    window = stride[1:], padding[1:], dilation[1:]
    for t, frames in enumerate(_frames(kernel_size[0], depth, stride, dilation)):
        images = _folded(padded[:, :, frames])
        term = ops.involution2d_kernel_grad.default(grad, images, groups, kernel_size[1:], *window)
        result[:, :, t] = term.unflatten(0, (batch, depth)).movedim(1, 4)
    return result


OPERATORS = {form.__name__: form for form in (involution3d, involution3d_input_grad, involution3d_kernel_grad)}


def _padded(volume: Tensor, padding: int) -> Tensor:
    return F.pad(volume, (0, 0, 0, 0, padding, padding)) if padding else volume


def _frames(taps: int, depth, stride, dilation) -> list[slice]:
    """For each tap of the depth, the frames of the padded input that it is multiplied by: one per output frame."""
    starts = [tap * dilation[0] for tap in range(taps)]
    return [slice(start, start + (depth - 1) * stride[0] + 1, stride[0]) for start in starts]


def _folded(volume: Tensor) -> Tensor:
    """(B, ..., D, H, W) -> (B * D, ..., H, W)"""
    return volume.movedim(-3, 1).flatten(0, 1)


def _memory_format(volume: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if is_channels_last(volume) else torch.contiguous_format
