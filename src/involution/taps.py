"""Involution as a loop over the taps of the kernel, in PyTorch's own operators.

It runs if there are no compiled kernels. Each tap is one multiplication and addition with a shifted view of the padded
input, so that no unfolded input (`Kh * Kw` times the input) is written to memory. Values of 16 bits are multiplied and
summed in float32.

In eager mode the gradients accumulate in place. A compiler gets them without writes to slices, because Inductor fuses
sums over all taps into one pass, but not a sequence of writes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autocast
from .reference import accumulation_dtype


def involution2d(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """Sums tap * shifted input over the window (arXiv 2103.06255, equation 4): (B, C, H', W')."""
    groups, kernel_size, output_size = kernel.shape[1], kernel.shape[2:4], kernel.shape[4:]
    rows = _shifted(_padded(input, groups, padding), kernel_size, output_size, stride, dilation)
    output = None
    multiply_add = torch.addcmul if torch.compiler.is_compiling() else Tensor.addcmul_  # vmap has no rule for addcmul_
    for images, row in zip(rows, kernel.unbind(2)):
        for image, tap in zip(images, _taps(row, is_channels_last(input))):
            output = image * tap if output is None else multiply_add(output, image, tap)
    assert output is not None  # a kernel has at least one tap
    return output.flatten(1, 2).to(input.dtype)


def involution2d_input_grad(grad_output: Tensor, kernel: Tensor, input_size, stride, padding, dilation) -> Tensor:
    """The gradient of the input: (B, C, H, W) with `input_size` = (H, W)."""
    groups, kernel_size, output_size = kernel.shape[1], kernel.shape[2:4], kernel.shape[4:]
    height, width = (input_size[n] + 2 * padding[n] for n in range(2))
    grad = grad_output.to(accumulation_dtype(grad_output.dtype)).unflatten(1, (groups, -1))
    if torch.compiler.is_compiling():
        padded = _interleaved_sum(grad, kernel, (height, width), stride, dilation)
    else:
        padded = empty_image(grad_output, height, width, grad.dtype).zero_()
        rows = _shifted(padded.unflatten(1, (groups, -1)), kernel_size, output_size, stride, dilation)
        for images, row in zip(rows, kernel.unbind(2)):
            for image, tap in zip(images, _taps(row, is_channels_last(grad_output))):
                image.addcmul_(grad, tap)
    top, left = padding
    return padded[:, :, top : top + input_size[0], left : left + input_size[1]].to(grad_output.dtype)


def involution2d_kernel_grad(
    grad_output: Tensor, input: Tensor, groups: int, kernel_size, stride, padding, dilation
) -> Tensor:
    """The gradient of the kernel: (B, G, Kh, Kw, H', W')."""
    output_size = grad_output.shape[2:]
    grad = grad_output.to(accumulation_dtype(grad_output.dtype)).unflatten(1, (groups, -1))
    rows = _shifted(_padded(input, groups, padding), kernel_size, output_size, stride, dilation)
    if torch.compiler.is_compiling():
        taps = [(grad * image).sum(2) for images in rows for image in images]
        return torch.stack(taps, 2).to(input.dtype).unflatten(2, kernel_size)
    result = empty_kernel(input, groups, kernel_size, output_size)
    for u, images in enumerate(rows):
        for v, image in enumerate(images):
            result[:, :, u, v] = (grad * image).sum(2)
    return result


class _Traced(torch.autograd.Function):
    """`involution2d` for compilers. Its derivative by the rules for slices would be twice as slow."""

    @staticmethod
    def forward(ctx, input, kernel, stride, padding, dilation):
        ctx.save_for_backward(input, kernel)
        ctx.window = stride, padding, dilation
        return involution2d(input, kernel, stride, padding, dilation)

    @staticmethod
    def backward(ctx, grad):
        input, kernel = ctx.saved_tensors
        grad_input = grad_kernel = None
        with autocast.disabled(grad.device.type):
            if ctx.needs_input_grad[0]:
                grad_input = involution2d_input_grad(grad, kernel, input.shape[2:], *ctx.window)
            if ctx.needs_input_grad[1]:
                groups, kernel_size = kernel.shape[1], kernel.shape[2:4]
                grad_kernel = involution2d_kernel_grad(grad, input, groups, kernel_size, *ctx.window)
        return grad_input, grad_kernel, None, None, None


traced_involution2d = _Traced.apply


# --- Memory layout ---


def is_channels_last(image: Tensor) -> bool:
    """Decides the memory format of every result, by the same rule as the compiled kernels.

    It compares strides because they have a meaning for slices, expanded tensors and sizes of 1, for which "is
    contiguous" is ambiguous.
    """
    return image.stride(1) < image.stride(-1)


def empty_image(like: Tensor, height, width, dtype: torch.dtype | None = None) -> Tensor:
    """(B, C, height, width) in the memory format of `like`."""
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    shape = (like.shape[0], like.shape[1], height, width)
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def empty_kernel(like: Tensor, groups: int, kernel_size, output_size) -> Tensor:
    """(B, G, Kh, Kw, H', W') as a 1x1 convolution returns it in the memory format of the image `like`."""
    if is_channels_last(like):
        return like.new_empty((like.shape[0], *output_size, groups, *kernel_size)).permute(0, 3, 4, 5, 1, 2)
    return like.new_empty((like.shape[0], groups, *kernel_size, *output_size))


# --- The taps, and what they are multiplied by ---


def _padded(input: Tensor, groups: int, padding) -> Tensor:
    """(B, C, H, W) -> (B, G, C/G, H + 2 * padding, W + 2 * padding), in the accumulation dtype."""
    padded = F.pad(input.to(accumulation_dtype(input.dtype)), (padding[1], padding[1], padding[0], padding[0]))
    return padded.unflatten(1, (groups, -1))


def _shifted(padded: Tensor, kernel_size, output_size, stride, dilation) -> list[list[Tensor]]:
    """For each row of taps and each tap, the view (B, G, C/G, H', W') of a padded image that it is multiplied by."""
    rows, columns = (
        [
            slice(tap * dilation[n], tap * dilation[n] + (output_size[n] - 1) * stride[n] + 1, stride[n])
            for tap in range(kernel_size[n])
        ]
        for n in range(2)
    )
    return [[padded[..., row, column] for column in columns] for row in rows]


def _taps(row: Tensor, channels_last: bool) -> tuple[Tensor, ...]:
    """The taps of one row of the kernel, in the accumulation dtype: (B, G, Kw, H', W') -> Kw of (B, G, 1, H', W')."""
    row = row.to(accumulation_dtype(row.dtype))
    if channels_last and not torch.compiler.is_compiling():
        # The taps of a pixel are next to each other, and the values of one tap far apart. A copy in the other order
        # halves the time of eager mode. A copy of the whole kernel is up to a fifth faster, with K times the memory.
        row = row.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
    return row.unsqueeze(2).unbind(3)


def _interleaved_sum(grad: Tensor, kernel: Tensor, size, stride, dilation) -> Tensor:
    """The sum of `grad * tap` over all taps, at the positions of `_shifted`: (B, C, *size).

    Rows, and columns, that are equal modulo the stride get the products of the same taps. Each such subset of the
    image is computed separately, (B, G, C/G, ceil(H / stride), ceil(W / stride)), and the subsets are interleaved.
    """
    height, width, lines = -(-size[0] // stride[0]), -(-size[1] // stride[1]), []
    for y in range(stride[0]):
        line = []
        for x in range(stride[1]):
            total = grad.new_zeros(*grad.shape[:3], height, width)
            for u in [u for u in range(kernel.shape[2]) if u * dilation[0] % stride[0] == y]:
                for v in [v for v in range(kernel.shape[3]) if v * dilation[1] % stride[1] == x]:
                    top, left = u * dilation[0] // stride[0], v * dilation[1] // stride[1]
                    right, bottom = width - grad.shape[4] - left, height - grad.shape[3] - top
                    product = grad * kernel[:, :, None, u, v].to(grad.dtype)
                    total = total + F.pad(product, (left, right, top, bottom))
            line.append(total)
        lines.append(torch.stack(line, 5))
    image = torch.stack(lines, 4)  # (B, G, C/G, height, stride, width, stride)
    return image.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, :, : size[0], : size[1]]
