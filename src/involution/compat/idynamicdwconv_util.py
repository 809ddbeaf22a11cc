"""The layers and the function of `idynamicdwconv_util.py` in restoration networks.

The file began as `dlgsanet_idynamicdwconv_util.py` in NeonLeexiang/DLGSANet. Later copies add `IDynamic`.
"""

from torch import Tensor, nn

from .generated import generated_involution
from .idynamic import _groups
from .involution_cuda import _idynamic_cuda


__all__ = ["IDynamic", "IDynamicDWConv", "_idynamic_cuda"]


class _Dynamic(nn.Module):
    def __init__(self, channels: int, kernel_size: int, group_channels: int, bias: bool, hidden: int) -> None:
        super().__init__()
        self.groups = _groups(channels, kernel_size, group_channels)
        self.kernel_size = kernel_size
        self.channels = channels
        self.group_channels = group_channels
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=bias),
            nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=bias),
        )
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, kernel_size**2 * self.groups, 1, bias=bias))

    def _apply_kernels(self, input: Tensor, guide: Tensor) -> Tensor:
        features = self.conv1(guide)
        return generated_involution(
            input, features, self.conv2, (self.kernel_size,) * 2, padding=self.kernel_size // 2
        )


class IDynamicDWConv(_Dynamic):
    """(B, channels, H, W) -> (B, channels, H, W), an involution with `group_channels` channels a group.

    The kernels come from three convolutions without an activation between them: 1x1 to `channels // 4` channels,
    depth-wise of the kernel size, and 1x1. So a kernel depends on the pixels in its window, not only on the one at its
    center.

    Args:
        kernel_size: an odd number.
        bias: whether the three convolutions have biases.

    Raises:
        ValueError: `group_channels` does not divide `channels`, or the kernel size is even.
    """

    def __init__(self, channels: int, kernel_size: int, group_channels: int, bias: bool = True) -> None:
        super().__init__(channels, kernel_size, group_channels, bias, channels // 4)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_kernels(x, x)


class IDynamic(_Dynamic):
    """As `IDynamicDWConv`, but applies the kernels that it generates from `x` to `x_main`.

    The hidden number of channels is `channels // 8`.
    """

    def __init__(self, channels: int, kernel_size: int, group_channels: int, bias: bool = True) -> None:
        super().__init__(channels, kernel_size, group_channels, bias, channels // 8)

    def forward(self, x_main: Tensor, x: Tensor) -> Tensor:
        return self._apply_kernels(x_main, x)
