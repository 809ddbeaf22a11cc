"""Selects the implementation of involution: the package `involution`, or plain PyTorch.

In plain PyTorch, `involution2d_fused` and `involution2d_batch_norm` are None. A kernel from the Kernel Hub replaces the
`forward` of `RedNetInvolution` instead, see there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from transformers.utils import logging


logger = logging.get_logger(__name__)

try:
    from involution import involution2d, involution2d_batch_norm, involution2d_fused
except ImportError as error:  # remote code runs without the package of the compiled operator
    involution2d_batch_norm, involution2d_fused, _missing = None, None, str(error)

if involution2d_fused is None:

    def involution2d(input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        """Applies kernels (B, G, K, K, H', W') of size K = 2 * padding + 1 to an input (B, C, H, W)."""
        if not torch.compiler.is_compiling():  # a warning would break the graph
            logger.warning_once(
                f"RedNet's involutions run in plain PyTorch, slower than compiled kernels ({_missing}). To use the "
                "compiled operator, install the package `rednet` from its repository (`pip install .` in a clone), after "
                "you uninstall any other package named `involution`, or call `kernels.kernelize` with a kernel for the "
                "layer RedNetInvolution."
            )
        if torch.onnx.is_in_onnx_export() or _has_dynamic_size(kernel):
            return _unfolded_involution(input, kernel, stride, padding)
        if torch.is_grad_enabled() and (input.requires_grad or kernel.requires_grad) and not is_transformed():
            return _Involution.apply(input, kernel, stride, padding)
        return _involution(input, kernel, stride, padding)


def _has_dynamic_size(kernel: Tensor) -> bool:
    """Whether a compiler or exporter traces with a symbolic height or width."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # imports SymPy

    return not has_static_value(kernel.shape[4] * kernel.shape[5])


def is_transformed() -> bool:
    """Whether a tracer, a transform of torch.func or forward-mode differentiation observes every operator."""
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _unfolded_involution(input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """
    Involution with a copy of the input for each tap, a few nodes instead of a hundred: for ONNX files, and for compilers
    with dynamic shapes, which need minutes to trace the shifted views, or fail.
    """
    # Reads each size as an element of a shape: tracers record slices of shapes and sizes in `unflatten` as constants.
    batch, groups, height, width = kernel.shape[0], kernel.shape[1], kernel.shape[4], kernel.shape[5]
    kernel_size = 2 * padding + 1
    columns = F.unfold(input, kernel_size, padding=padding, stride=stride)
    columns = columns.view(batch, groups, -1, kernel_size, kernel_size, height, width)
    return (kernel.unsqueeze(2) * columns).sum((3, 4)).reshape(batch, input.shape[1], height, width)


# Involution in plain PyTorch: one multiplication and addition for each tap of the kernel, with a shifted view of the
# padded input. Nothing is unfolded. Values of 16 bits are multiplied and summed in float32.


class _Involution(torch.autograd.Function):
    """Keeps only input and kernel for the backward pass."""

    @staticmethod
    def forward(ctx, input, kernel, stride, padding):
        ctx.save_for_backward(input, kernel)
        ctx.stride, ctx.padding = stride, padding
        return _involution(input, kernel, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        (input, kernel), grad_input, grad_kernel = ctx.saved_tensors, None, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # for derivatives of higher order
            _, vjp = torch.func.vjp(lambda *pair: _involution(*pair, ctx.stride, ctx.padding), input, kernel)
            return *vjp(grad), None, None
        grad = grad.to(_accumulation_dtype(input, kernel)).unflatten(1, (kernel.shape[1], -1))
        if ctx.needs_input_grad[0]:
            grad_input = _input_grad(grad, input, kernel, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_kernel = _kernel_grad(grad, input, kernel, ctx.stride, ctx.padding)
        return grad_input, grad_kernel, None, None


def _involution(input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """Sums tap * shifted input over the window (paper, equation 4): (B, C, H', W')."""
    dtype, output = _accumulation_dtype(input, kernel), None
    multiply_add = torch.addcmul if is_transformed() else Tensor.addcmul_  # vmap has no rule for addcmul_
    for images, row in zip(_shifted(_padded(input.to(dtype), kernel, padding), kernel, stride), kernel.unbind(2)):
        for image, tap in zip(images, _taps(row.to(dtype), _is_channels_last(input))):
            output = image * tap if output is None else multiply_add(output, image, tap)
    return output.flatten(1, 2).to(torch.promote_types(input.dtype, kernel.dtype))


def _input_grad(grad: Tensor, input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the input, (B, C, H, W), from that of the output, (B, G, C/G, H', W')."""
    height, width = input.shape[2:]
    if torch.compiler.is_compiling():
        padded = _interleaved_sum(grad, kernel, height + 2 * padding, width + 2 * padding, stride)
    else:
        padded = torch.zeros_like(_padded(input.to(grad.dtype), kernel, padding))
        for images, row in zip(_shifted(padded, kernel, stride), kernel.unbind(2)):
            for image, tap in zip(images, _taps(row.to(grad.dtype), _is_channels_last(input))):
                image.addcmul_(grad, tap)
    return padded.flatten(1, 2)[:, :, padding : padding + height, padding : padding + width].to(input.dtype)


def _kernel_grad(grad: Tensor, input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the kernel, (B, G, K, K, H', W'), from that of the output, (B, G, C/G, H', W')."""
    rows = _shifted(_padded(input.to(grad.dtype), kernel, padding), kernel, stride)
    if torch.compiler.is_compiling():
        taps = [(grad * image).sum(2) for images in rows for image in images]
        return torch.stack(taps, 2).to(kernel.dtype).view(kernel.shape)
    result = torch.empty_like(kernel)
    for u, images in enumerate(rows):
        for v, image in enumerate(images):
            result[:, :, u, v] = (grad * image).sum(2)
    return result


def _accumulation_dtype(input: Tensor, kernel: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(input.dtype, kernel.dtype), torch.float32)


def _is_channels_last(image: Tensor) -> bool:
    return image.stride(1) < image.stride(3)


def _padded(input: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """(B, C, H, W) to (B, G, C/G, H + 2 * padding, W + 2 * padding)."""
    return F.pad(input, (padding, padding, padding, padding)).unflatten(1, (kernel.shape[1], -1))


def _shifted(padded: Tensor, kernel: Tensor, stride: int) -> list[list[Tensor]]:
    """For each row of taps and each tap, the view (B, G, C/G, H', W') of a padded image that it is multiplied by."""
    rows, columns = (
        [slice(tap, tap + (kernel.shape[4 + n] - 1) * stride + 1, stride) for tap in range(kernel.shape[2 + n])]
        for n in range(2)
    )
    return [[padded[..., row, column] for column in columns] for row in rows]


def _taps(row: Tensor, channels_last: bool) -> tuple[Tensor, ...]:
    """The taps of one row of the kernel: (B, G, K, H', W') to K of (B, G, 1, H', W')."""
    if channels_last and not torch.compiler.is_compiling():
        # The taps of a pixel are next to each other, and the values of one tap far apart. A copy in the other order
        # halves the time of eager mode. A copy of the whole kernel is up to a fifth faster, with K times the memory.
        row = row.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)
    return row.unsqueeze(2).unbind(3)


def _interleaved_sum(grad: Tensor, kernel: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The sum of `grad * tap` over all taps, at the positions of `_shifted`: (B, G, C/G, height, width).

    For compilers: Inductor fuses a sum into one pass, but not a sequence of writes to slices. Rows, and columns, that
    are equal modulo the stride get the products of the same taps. Each such subset of the image is computed apart, and
    the subsets are interleaved.
    """
    rows, columns, lines = -(-height // stride), -(-width // stride), []
    for y in range(stride):
        line = []
        for x in range(stride):
            total = grad.new_zeros(*grad.shape[:3], rows, columns)
            for u in range(y, kernel.shape[2], stride):
                for v in range(x, kernel.shape[3], stride):
                    top, left = u // stride, v // stride
                    right, bottom = columns - grad.shape[4] - left, rows - grad.shape[3] - top
                    product = grad * kernel[:, :, None, u, v].to(grad.dtype)
                    total = total + F.pad(product, (left, right, top, bottom))
            line.append(total)
        lines.append(torch.stack(line, 5))
    image = torch.stack(lines, 4)  # (B, G, C/G, rows, stride, columns, stride)
    return image.flatten(5, 6).flatten(3, 4)[..., :height, :width]
