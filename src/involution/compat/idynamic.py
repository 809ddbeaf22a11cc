"""The layer and the function of `models/idynamic.py` in Atten4Vis/DemystifyLocalViT.

"On the Connection between Local Attention and Dynamic Depth-wise Convolution", Han et al., ICLR 2022.
"""

from torch import Tensor, nn

from .generated import generated_involution
from .involution_cuda import _idynamic_cuda


__all__ = ["IDynamicDWConv", "_idynamic_cuda"]


class IDynamicDWConv(nn.Module):
    """Inhomogeneous dynamic depth-wise convolution: (B, channels, H, W) -> (B, channels, H, W).

    It is an involution with `group_channels` channels a group. The kernels come from a 1x1 convolution to
    `channels // 4` channels with bias, BatchNorm, ReLU, and a 1x1 convolution with bias.

    Args:
        kernel_size: an odd number.

    Raises:
        ValueError: `group_channels` does not divide `channels`, or the kernel size is even.
    """

    def __init__(self, channels: int, kernel_size: int, group_channels: int) -> None:
        super().__init__()
        self.groups = _groups(channels, kernel_size, group_channels)
        self.kernel_size = kernel_size
        self.channels = channels
        self.group_channels = group_channels
        hidden = channels // 4
        self.conv1 = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, kernel_size**2 * self.groups, 1))

    def forward(self, x: Tensor) -> Tensor:
        return generated_involution(
            x, self.conv1(x), self.conv2, (self.kernel_size,) * 2, padding=self.kernel_size // 2
        )


def _groups(channels: int, kernel_size: int, group_channels: int) -> int:
    if group_channels < 1 or channels % group_channels:
        raise ValueError(f"group_channels is {group_channels}, expected a divisor of channels = {channels}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
    return channels // group_channels
