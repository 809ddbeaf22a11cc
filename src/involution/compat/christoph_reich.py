"""The layers of ChristophReich1996/Involution, whose package is also named `involution`."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import per_dimension
from .generated import generated_involution


__all__ = ["Involution2d", "Involution3d"]

_MODULES: dict[int, tuple[Any, ...]] = {
    2: (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, F.adaptive_avg_pool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.AvgPool3d, F.adaptive_avg_pool3d),
}


class _Involution(nn.Module):
    """What both layers have in common: the parameters, and the features that the last convolution makes kernels of."""

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        sigma_mapping: nn.Module | None,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...],
        groups: int,
        reduce_ratio: int,
        dilation: int | tuple[int, ...],
        padding: int | tuple[int, ...],
        bias: bool,
        force_shape_match: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for which, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise ValueError(f"{name}: {which} is {channels}, expected a multiple of groups = {groups}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = tuple(per_dimension(name, "kernel_size", kernel_size, 1, dimensions))
        self.stride = tuple(per_dimension(name, "stride", stride, 1, dimensions))
        self.groups = groups
        self.reduce_ratio = reduce_ratio
        self.dilation = tuple(per_dimension(name, "dilation", dilation, 1, dimensions))
        self.padding = tuple(per_dimension(name, "padding", padding, 0, dimensions))
        self.bias = bias
        self.force_shape_match = force_shape_match

        convolution, norm, pool, self._adaptive_pool = _MODULES[dimensions]
        hidden, taps = out_channels // reduce_ratio, math.prod(self.kernel_size)
        if sigma_mapping is None:
            sigma_mapping = nn.Sequential(norm(hidden, momentum=0.3), nn.ReLU())
        self.sigma_mapping = sigma_mapping
        self.initial_mapping = (
            nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1, bias=bias)
        )
        self.o_mapping = pool(self.stride, self.stride)
        self.reduce_mapping = convolution(in_channels, hidden, 1, bias=bias)
        self.span_mapping = convolution(hidden, taps * groups, 1, bias=bias)

    def _output_size(self, input: Tensor) -> list[int]:
        dimensions = len(self.kernel_size) + 2
        if input.dim() != dimensions:
            raise ValueError(f"{type(self).__name__}: input has {input.dim()} dimensions, expected {dimensions}")
        sizes = zip(input.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes]

    def _features(self, input: Tensor, size: Sequence[int]) -> Tensor:
        """The input of `span_mapping`, with `size` pixels. Features of one pixel serve all pixels."""
        if self.force_shape_match:
            input = self._adaptive_pool(input, size)
        features = self.sigma_mapping(self.reduce_mapping(self.o_mapping(input)))
        if any(n not in (1, wanted) for n, wanted in zip(features.shape[2:], size)):
            raise ValueError(
                f"{type(self).__name__}: the layer generates kernels for {tuple(features.shape[2:])} pixels, but its "
                f"output has {tuple(size)}. Expected a size that the stride divides and 'same' padding, or stride 1 "
                "and force_shape_match=True"
            )
        return features.expand(-1, -1, *size)


class Involution2d(_Involution):
    """(B, in_channels, H, W) -> (B, out_channels, H', W') with the H' and W' of a convolution.

    A 1x1 convolution first computes the output channels, if their number differs. The kernels come from the input:
    average pooling by the stride, a 1x1 convolution to `out_channels // reduce_ratio` channels, BatchNorm with
    momentum 0.3 and ReLU, or `sigma_mapping`, and a 1x1 convolution.

    Args:
        kernel_size, stride, dilation, padding: ints or pairs. The default padding fits the default kernel size only.
        bias: whether all convolutions have biases.
        force_shape_match: averages the input to the size of the output before it is pooled.
        kwargs: ignored, as in the original.

    Raises:
        ValueError: `groups` does not divide the channels; or, when called, there is neither one kernel for all pixels
            of the output nor one for each. The original raises an error, too, except for a single window of the input,
            which it multiplies by many kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sigma_mapping: nn.Module | None = None,
        kernel_size: int | tuple[int, int] = (7, 7),
        stride: int | tuple[int, int] = (1, 1),
        groups: int = 1,
        reduce_ratio: int = 1,
        dilation: int | tuple[int, int] = (1, 1),
        padding: int | tuple[int, int] = (3, 3),
        bias: bool = False,
        force_shape_match: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            2, in_channels, out_channels, sigma_mapping, kernel_size, stride, groups, reduce_ratio, dilation, padding,
            bias, force_shape_match,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        features = self._features(input, self._output_size(input))
        return generated_involution(
            self.initial_mapping(input), features, self.span_mapping,
            self.kernel_size, self.stride, self.padding, self.dilation,
        )  # fmt: skip


class Involution3d(_Involution):
    """(B, in_channels, D, H, W) -> (B, out_channels, D', H', W'), with the parameters of `Involution2d`.

    **This is not an involution.** The original stores a window of K taps for each of L pixels in the order (L, K), and
    reads it in the order (K, L): with f = k * L + l,

        output[b, c, l] = sum over k of kernel[b, g(c), k, l] * window[b, c, f // K, f % K]

    so that pixels get values from all over the volume. It also applies the first padding to the width and the last one
    to the depth, and ignores the dilation when it cuts windows. Its trained weights give their results with this sum
    only, so this layer computes it, in plain PyTorch. To train a new network, use `involution.Involution3d`.

    Args:
        kernel_size, stride, dilation, padding: ints or triples.
        bias, force_shape_match, kwargs: see `Involution2d`.

    Raises:
        ValueError: see `Involution2d`. Also if the number of windows, which ignore the dilation, is not the number of
            output pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sigma_mapping: nn.Module | None = None,
        kernel_size: int | tuple[int, int, int] = (7, 7, 7),
        stride: int | tuple[int, int, int] = (1, 1, 1),
        groups: int = 1,
        reduce_ratio: int = 1,
        dilation: int | tuple[int, int, int] = (1, 1, 1),
        padding: int | tuple[int, int, int] = (3, 3, 3),
        bias: bool = False,
        force_shape_match: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            3, in_channels, out_channels, sigma_mapping, kernel_size, stride, groups, reduce_ratio, dilation, padding,
            bias, force_shape_match,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        size = self._output_size(input)
        kernel = self.span_mapping(self._features(input, size)).unflatten(1, (self.groups, 1, -1))
        windows = F.pad(self.initial_mapping(input), [p for p in self.padding for _ in range(2)])
        for n in range(3):
            windows = windows.unfold(2 + n, self.kernel_size[n], self.stride[n])
        if math.prod(windows.shape[2:5]) != math.prod(size):
            raise ValueError(
                f"Involution3d: there are {tuple(windows.shape[2:5])} windows for an output of {tuple(size)} pixels. "
                f"The layer ignores the dilation when it cuts windows: expected 1, not {self.dilation}"
            )
        windows = windows.reshape(input.shape[0], self.groups, -1, kernel.shape[3], *size)
        return (kernel * windows).sum(3).flatten(1, 2)
