"""Involution as a composition of PyTorch's own operators, for model exporters (`torch.onnx.export`).

Unfold, and also a sum of Kh * Kw shifted images, passes over memory a hundred times. Here a matrix product does the
work. Each output row is divided into tiles of TILE neighboring pixels, which share a window of the input of
`(TILE - 1) * stride + Kw` columns and Kh rows. If each pixel's taps are placed at the positions of the window that
they apply to, with zeros elsewhere, the kernels of a tile are a banded matrix (TILE, window). The product of this
matrix and the window (window, C / G) is the output.

Sizes may be symbolic. The steps assume only that they are positive.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import accumulation_dtype
from .taps import is_channels_last


# The number of output pixels that share a window. A larger number gives larger products with a larger share of zeros.
TILE = 8


def involution2d(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """(B, C, H, W) and (B, G, Kh, Kw, H', W') -> (B, C, H', W')."""
    taps = _whole_tiles(kernel.permute(0, 1, 4, 5, 3, 2), 3)  # (B, G, H', tiles * TILE, Kw, Kh)
    return _involution(input, taps, kernel.shape[5], stride, padding, dilation).to(input.dtype)


def involution2d_fused(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
    kernel_size,
    stride,
    padding,
    dilation,
) -> Tensor:
    """(B, C, H, W) and the features (B, R, H', W') -> (B, C, H', W').

    The rows of the weight are sorted from (G, Kh, Kw) to (G, Kw, Kh), the order of the taps in a band.
    """
    (rows, columns), (batch, hidden, height, width) = kernel_size, features.shape
    groups = weight.shape[0] // (rows * columns)
    pixels = _whole_tiles(features.permute(0, 2, 3, 1), 2)
    weight = weight.reshape(groups, rows, columns, hidden).transpose(1, 2).reshape(-1, hidden)
    taps = pixels.flatten(0, 2) @ weight.t()
    if bias is not None:
        taps = taps + bias.reshape(groups, rows, columns).transpose(1, 2).flatten()
    taps = taps.reshape(batch, height, pixels.shape[2], groups, columns, rows).permute(0, 3, 1, 2, 4, 5)
    output = _involution(input, taps, width, stride, padding, dilation)
    if scale is not None and shift is not None:
        output = output * scale[:, None, None] + shift[:, None, None]
    return (output.relu() if relu else output).to(input.dtype)


def unfolded_involution2d(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """The definition (`reference.involution2d`) for `torch.jit.trace`: (B, C, H, W) -> (B, C, H', W').

    It reads each size as an element of a shape, because the tracer records all other sizes as constants.
    """
    batch, groups, height, width = kernel.shape[0], kernel.shape[1], kernel.shape[4], kernel.shape[5]
    kernel_size = int(kernel.shape[2]), int(kernel.shape[3])
    columns = F.unfold(input, kernel_size, dilation, padding, stride)
    columns = columns.view(batch, groups, input.shape[1] // groups, *kernel_size, height, width)
    return (kernel.unsqueeze(2) * columns).sum((3, 4)).reshape(batch, input.shape[1], height, width)


def _whole_tiles(tensor: Tensor, dim: int) -> Tensor:
    """Pads `dim` at its end with zeros to a multiple of TILE."""
    size = tensor.shape[dim]
    tensor = F.pad(tensor, [0, 0] * (tensor.dim() - dim - 1) + [0, TILE - 1])
    return tensor.narrow(dim, 0, (size + TILE - 1) // TILE * TILE)


def _involution(input: Tensor, taps: Tensor, width: int, stride, padding, dilation) -> Tensor:
    """(B, C, H, W) and (B, G, H', tiles * TILE, Kw, Kh) -> (B, C, H', W'), in the accumulation dtype."""
    batch, groups, height, _, columns, rows = taps.shape
    span = (TILE - 1) * stride[1] + columns * dilation[1]
    bands = _bands(taps, span, stride[1], dilation[1])
    windows = _windows(input, groups, rows, span, height, taps.shape[3] // TILE, stride, padding, dilation)
    dtype = accumulation_dtype(input.dtype)
    output = bands.to(dtype).bmm(windows.to(dtype))  # (B * G * H' * tiles, TILE, C / G)
    output = output.reshape(batch, groups, height, taps.shape[3], input.shape[1] // groups).permute(0, 1, 4, 2, 3)
    output = output.flatten(1, 2).narrow(3, 0, width)
    return output.contiguous(memory_format=torch.channels_last if is_channels_last(input) else torch.contiguous_format)


def _bands(taps: Tensor, span: int, stride: int, dilation: int) -> Tensor:
    """The banded matrices: (B, G, H', tiles * TILE, Kw, Kh) -> (B * G * H' * tiles, TILE, span * Kh)."""
    columns, rows = taps.shape[4:]
    tiles = taps.shape[:3].numel() * (taps.shape[3] // TILE)
    if dilation > 1:
        taps = F.pad(taps.unsqueeze(5), (0, 0, 0, dilation - 1)).flatten(4, 5)
    # The taps of pixel n of a tile are shifted by n * stride columns. Therefore each pixel's taps are padded with
    # zeros, and the sequence of all of them is divided into rows that are one stride shorter: these are the band.
    window, step = span * rows, stride * rows
    taps = F.pad(taps.flatten(4), (0, window + step - columns * dilation * rows))
    return taps.reshape(tiles, TILE * (window + step)).narrow(1, 0, TILE * window).reshape(tiles, TILE, window)


def _windows(input: Tensor, groups: int, rows: int, span: int, height, tiles, stride, padding, dilation) -> Tensor:
    """The windows of all tiles: (B, C, H, W) -> (B * G * H' * tiles, span * Kh, C / G)."""
    batch, channels, _, _ = input.shape
    input = input.reshape(batch * groups, channels // groups, *input.shape[2:]).permute(0, 2, 3, 1)
    # The last tile may extend beyond the output.
    right = padding[1] + (TILE - 1) * stride[1] + dilation[1] - 1
    input = F.pad(input, (0, 0, padding[1], right, padding[0], padding[0]))
    wide = input.shape[2]
    # One gather by linear pixel index: the first pixel of a tile, plus the offsets of the pixels in its window.
    row, tile, column, tap = (torch.arange(n, device=input.device) for n in (height, tiles, span, rows))
    row = row[:, None, None, None] * stride[0] + tap * dilation[0]
    column = tile[:, None, None] * (TILE * stride[1]) + column[:, None]
    pixels = (row * wide + column).flatten()
    input = input.flatten(1, 2).index_select(1, pixels)
    return input.reshape(batch * groups * height * tiles, span * rows, channels // groups)
