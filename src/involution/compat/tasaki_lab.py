"""The layer of shikishima-TasakiLab: Involution-PyTorch and involution-cupy, packages that are named `involution`."""

from torch import nn

from . import christoph_reich


__all__ = ["Involution2d"]


class Involution2d(christoph_reich.Involution2d):
    """The same layer as `christoph_reich.Involution2d`, with the same names of parameters and another signature.

    In Involution-PyTorch, the gradient of the input is wrong: it computes the column of an output pixel from the row
    of the input pixel. Here it is right, so training continues differently.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 7,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 3,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        sigma_mapping: nn.Module | None = None,
        reduce_ratio: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            sigma_mapping,
            kernel_size,
            stride,
            groups,
            reduce_ratio,
            dilation,
            padding,
            bias,
        )
