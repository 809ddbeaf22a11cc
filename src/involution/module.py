"""The involution layer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules.module import _has_any_global_hook

from .arguments import pair
from .ops import involution2d, involution2d_fused


# While a model is traced, its parameters are fake tensors.
_PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)


def _is_plain(convolution: nn.Module) -> bool:
    """Whether calling `convolution` computes a 1x1 convolution with its weight and bias, and does nothing else.

    If a user changes anything (hooks of this or of all modules, adapters, parametrizations, attributes, parameters of
    a tensor subclass), the module has to be called.
    """
    hooks = (
        convolution._forward_hooks,
        convolution._forward_pre_hooks,
        convolution._backward_hooks,
        convolution._backward_pre_hooks,
    )
    return (
        type(convolution) is nn.Conv2d
        and "forward" not in vars(convolution)
        and "_conv_forward" not in vars(convolution)
        and not any(hooks)
        and not _has_any_global_hook()
        and convolution.kernel_size == convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
        and type(convolution.weight) in _PLAIN_TENSORS
        and (convolution.bias is None or type(convolution.bias) in _PLAIN_TENSORS)
    )


class Involution2d(nn.Module):
    """Involution whose kernel is generated from the pixel at its center (arXiv 2103.06255, section 3).

    The kernel generation is average pooling by the stride (if it is not 1) -> 1x1 convolution to
    `channels / reduction_ratio` channels without bias -> BatchNorm -> ReLU -> 1x1 convolution to `Kh * Kw * groups`
    channels with bias. There is no softmax. The defaults are those of the paper. The layer is a drop-in replacement
    for a convolution with "same" padding and as many output as input channels: the output measures
    `ceil(H / stride) x ceil(W / stride)` for every input size.

    Args:
        channels: number of input and output channels, divisible by `group_channels` and `reduction_ratio`.
        kernel_size: an int or a pair (Kh, Kw), odd or even. An even kernel reaches one pixel further right and down.
        stride: an int or a pair (vertical, horizontal).
        dilation: an int or a pair.
        group_channels: number of channels that share a kernel.
        reduction_ratio: number of channels divided by the number of hidden channels of the kernel generation.

    Raises:
        ValueError: an argument is invalid. The message names the argument, the given value and the expected one.

    Shape:
        input (B, channels, H, W) -> output (B, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 7,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        group_channels: int = 16,
        reduction_ratio: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, divisor in (("group_channels", group_channels), ("reduction_ratio", reduction_ratio)):
            if divisor < 1 or channels % divisor != 0:
                raise ValueError(f"Involution2d: {name} is {divisor}, expected a divisor of channels = {channels}")
        self.channels = channels
        self.kernel_size = tuple(pair("Involution2d", "kernel_size", kernel_size, 1))
        self.stride = tuple(pair("Involution2d", "stride", stride, 1))
        self.dilation = tuple(pair("Involution2d", "dilation", dilation, 1))
        self.group_channels = group_channels
        self.reduction_ratio = reduction_ratio
        self.groups = channels // group_channels

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels // reduction_ratio, 1, bias=False, **factory),
            nn.BatchNorm2d(channels // reduction_ratio, **factory),
            nn.ReLU(),
        )
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.span = nn.Conv2d(channels // reduction_ratio, taps * self.groups, 1, **factory)

    def forward(self, input: Tensor) -> Tensor:
        features = self.reduce(self._pool(input))
        span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
        if span[0] % 2 or span[1] % 2:
            input = F.pad(input, (0, span[1] % 2, 0, span[0] % 2))
        window = self.stride, [s // 2 for s in span], self.dilation
        if _is_plain(self.span):
            return involution2d_fused(input, features, self.span.weight, self.span.bias, self.kernel_size, *window)
        return involution2d(input, self.span(features).unflatten(1, (self.groups, *self.kernel_size)), *window)

    def _pool(self, input: Tensor) -> Tensor:
        # ceil_mode generates a kernel for every output pixel: at odd sizes, the last window averages the pixels that
        # exist. If the stride divides the size, it changes nothing.
        return input if self.stride == (1, 1) else F.avg_pool2d(input, self.stride, ceil_mode=True)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"group_channels={self.group_channels}, reduction_ratio={self.reduction_ratio}"
        )
