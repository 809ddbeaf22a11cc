"""The layer and the function of the authors' repository (d-li14/involution).

They are in its files `involution_cuda.py`, which needs CuPy, and `involution_naive.py` and `involution.py`, which use
`unfold`. `_idynamic_cuda` is the same function under another name.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from ..ops import involution2d
from .generated import generated_involution


__all__ = ["_idynamic_cuda", "_involution_cuda", "involution"]


def _involution_cuda(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Applies the kernels `weight` (B, G, Kh, Kw, H', W') to `input` (B, C, H, W), and adds `bias` (C).

    This is `involution2d` with a bias and with padding 0 as the default. Any device, dtype and memory format. The
    original requires contiguous float32 or float64 tensors on a GPU: it reads tensors in other memory formats in the
    wrong order.

    Raises:
        ValueError: H' and W' are not those of the output. The original checks `H' == H // stride` instead. If the
            output has another size, it reads the kernel in the wrong order and outside of its memory.
    """
    output = involution2d(input, weight, stride, padding, dilation)
    return output if bias is None else output + bias.view(1, -1, 1, 1)


_idynamic_cuda = _involution_cuda


def _conv_module(in_channels: int, out_channels: int, norm: bool) -> nn.Sequential:
    """A 1x1 convolution with the names and the initial values of mmcv's ConvModule.

    With BatchNorm, there is a ReLU and no bias.
    """
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=not norm)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution)
    if norm:
        layers |= {"bn": nn.BatchNorm2d(out_channels), "activate": nn.ReLU()}
    return nn.Sequential(layers)


class involution(nn.Module):
    """The authors' layer: (B, channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)).

    It computes what `involution.Involution2d` computes, with the authors' names of parameters: 16 channels a group and
    a reduction ratio of 4. If 16 does not divide the number of channels, there are `channels // 16` groups, as in
    `involution_cuda.py`.

    The original requires sizes that the stride divides; `unfold` raises an error for others, and the CUDA kernel reads
    outside of its memory. Here the last window of the pooling averages the pixels that exist.

    Raises:
        ValueError: `channels // 16` is 0 or does not divide `channels`.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        groups = channels // 16
        if groups == 0 or channels % groups:
            raise ValueError(
                f"involution: channels is {channels}, expected at least 16 and a multiple of channels // 16 = {groups}"
            )
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.channels = channels
        self.group_channels = 16
        self.groups = groups
        self.conv1 = _conv_module(channels, channels // 4, norm=True)
        self.conv2 = _conv_module(channels // 4, kernel_size**2 * groups, norm=False)
        if stride > 1:
            # With an even kernel without dilation the output is smaller: there, the original pools as it should.
            self.avgpool = nn.AvgPool2d(stride, stride, ceil_mode=dilation * (kernel_size - 1) % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv1(x if self.stride == 1 else self.avgpool(x))
        window = self.stride, self.dilation * (self.kernel_size - 1) // 2, self.dilation
        return generated_involution(x, features, self.conv2, (self.kernel_size,) * 2, *window)
