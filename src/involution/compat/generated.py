"""Involution with a kernel from a 1x1 convolution, which the layers of `involution.compat` have in common."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..module import has_hooks, is_pointwise
from ..ops import involution2d, involution2d_fused


def generated_involution(
    input: Tensor,
    features: Tensor,
    span: nn.Module,
    kernel_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Applies `involution2d` with the kernel `span(features)`: (B, C, H, W) and (B, R, H', W') to (B, C, H', W').

    Args:
        span: a 1x1 convolution to `G * Kh * Kw` channels, or an `nn.Sequential` with nothing else in it. If it is
            unchanged (`is_pointwise`), the fused operator runs it.
        kernel_size: a pair (Kh, Kw).
        stride, padding, dilation: see `involution2d`.
    """
    convolution = span
    if type(span) is nn.Sequential and len(span) == 1 and not has_hooks(span):
        convolution = span[0]
    if isinstance(convolution, nn.Conv2d) and is_pointwise(convolution):
        window = stride, padding, dilation
        return involution2d_fused(input, features, convolution.weight, convolution.bias, kernel_size, *window)
    kernel = span(features).unflatten(1, (-1, *kernel_size))
    return involution2d(input, kernel, stride, padding, dilation)
