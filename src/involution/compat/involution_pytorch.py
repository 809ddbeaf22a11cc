"""The layer of the package `involution-pytorch` of PyPI (0.0.2.2, rish-16/involution_pytorch)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


__all__ = ["Inv2d"]


class Inv2d(nn.Module):
    """(B, channels, H, W) -> (B, channels, H / stride, W / stride), for a square output.

    **This is not an involution.** The original multiplies kernels and unfolded input as matrices over their last two
    dimensions, the rows and columns of the image, where it should multiply them pixel by pixel:

        output[b, c, i, j] = sum over k, l of kernel[b, g(c), k, i, l] * unfolded[b, c, k, l, j]

    where l is a column of the kernels and a row of the image. Its trained weights give their results with this sum
    only, so this layer computes it, in plain PyTorch. To train a new network, use `involution.Involution2d`.

    The kernels come from two 1x1 convolutions with biases, without anything between them.

    Raises:
        ValueError: `group_ch` does not divide `channels`; or, when called, the output is not square, the stride does
            not divide the size, or the kernel size is even.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int, group_ch: int = 16, red_ratio: int = 2) -> None:
        super().__init__()
        if group_ch < 1 or channels % group_ch:
            raise ValueError(f"Inv2d: group_ch is {group_ch}, expected a divisor of channels = {channels}")
        self.in_channels = self.out_channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.group_ch = group_ch
        self.red_ratio = red_ratio
        self.groups = channels // group_ch
        self.dilation = 1
        self.padding = (kernel_size - 1) // 2
        self.out = nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.reduce = nn.Conv2d(channels, channels // red_ratio, 1)
        self.span = nn.Conv2d(channels // red_ratio, kernel_size**2 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.span(self.reduce(self.out(x))).unflatten(1, (self.groups, -1))
        unfolded = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        height, width = kernel.shape[3:]
        if height != width or unfolded.shape[2] != height * width:
            raise ValueError(
                f"Inv2d: input has shape {tuple(x.shape)}, expected a square image whose side is a multiple of the "
                f"stride, {self.stride}, and an odd kernel size, not {self.kernel_size}"
            )
        unfolded = unfolded.view(x.shape[0], self.groups, self.group_ch, self.kernel_size**2, height, width)
        return torch.einsum("bgkil,bgcklj->bgcij", kernel, unfolded).flatten(1, 2)
