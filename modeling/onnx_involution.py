"""Involution as standard ONNX nodes: matrix products with kernels laid out as bands.

The definition, unfold or a sum of Kh * Kw shifted pictures, passes over memory a hundred times. Here a matrix product
does the work. Of every output row, TILE neighbouring pixels look at the same window of `(TILE - 1) * stride + Kw`
columns and Kh rows. With the taps of a pixel at the places of the window that it looks at, and zeros elsewhere, the
kernels of a tile are a banded matrix (TILE, window), and their product with the window (window, C / G) is the output.
"""

from onnxscript import opset18 as op


# Output pixels of a row that share a window. More of them make larger products, of which more is multiplied by zero.
TILE = 8


def _ints(*values: int):
    return op.Constant(value_ints=list(values))


def _join(*parts):
    return op.Concat(*(_ints(part) if isinstance(part, int) else part for part in parts), axis=0)


def involution2d_fused(
    input, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation
):  # fmt: skip
    """
    `involution.involution2d_fused` for the `custom_translation_table` of `torch.onnx.export`.

    Raises:
        NotImplementedError: the dilation is not 1.
    """
    if list(dilation) != [1, 1]:
        raise NotImplementedError(f"involution2d in ONNX has dilation 1, not {list(dilation)}")
    height, width = op.Shape(features, start=2, end=3), op.Shape(features, start=3)
    tiles = op.Div(op.Add(width, _ints(TILE - 1)), _ints(TILE))
    groups = weight.shape[0] // (kernel_size[0] * kernel_size[1])
    bands = _bands(features, weight, bias, kernel_size, stride[1], groups, tiles)
    windows = _windows(input, kernel_size, stride, padding, groups, height, tiles)
    output = op.MatMul(bands, windows)  # (B, G, H', tiles, TILE, C / G)
    output = op.Transpose(output, perm=[0, 1, 5, 2, 3, 4])
    output = op.Reshape(output, _join(0, input.shape[1], height, -1))
    output = op.Slice(output, _ints(0), width, _ints(3))
    if scale is not None:
        output = op.Add(op.Mul(output, op.Unsqueeze(scale, _ints(1, 2))), op.Unsqueeze(shift, _ints(1, 2)))
    return op.Relu(output) if relu else output


def _bands(features, weight, bias, kernel_size, stride: int, groups: int, tiles):
    """Generates the kernels: (B, R, H', W') -> (B, G, H', tiles, TILE, window), the window's columns before its rows."""
    (rows, columns), hidden = kernel_size, weight.shape[1]
    taps, batch, height = rows * columns, op.Shape(features, start=0, end=1), op.Shape(features, start=2, end=3)
    missing = op.Sub(op.Mul(tiles, _ints(TILE)), op.Shape(features, start=3))
    features = op.Pad(features, _join(0, 0, 0, 0, 0, 0, 0, missing))
    features = op.Reshape(op.Transpose(features, perm=[0, 2, 3, 1]), _ints(-1, hidden))
    weight = op.Transpose(op.Reshape(weight, _ints(groups, rows, columns, hidden)), perm=[0, 2, 1, 3])
    weight = op.Reshape(weight, _ints(-1, hidden))
    if bias is not None:
        bias = op.Reshape(op.Transpose(op.Reshape(bias, _ints(groups, rows, columns)), perm=[0, 2, 1]), _ints(-1))
    kernel = op.Gemm(features, weight, bias, transB=1)
    kernel = op.Reshape(kernel, _join(batch, height, tiles, TILE, groups, taps))
    kernel = op.Transpose(kernel, perm=[0, 4, 1, 2, 3, 5])
    # Pixel n of a tile has its taps n * stride columns further on. So rows of taps that are followed by zeros, read as
    # one sequence, become the band when it is cut into rows that are one stride shorter.
    window, shift = ((TILE - 1) * stride + columns) * rows, stride * rows
    kernel = op.Pad(kernel, _ints(*[0] * 11, window + shift - taps))
    kernel = op.Reshape(kernel, _join(batch, groups, height, tiles, TILE * (window + shift)))
    kernel = op.Slice(kernel, _ints(0), _ints(TILE * window), _ints(4))
    return op.Reshape(kernel, _join(batch, groups, height, tiles, TILE, window))


def _windows(input, kernel_size, stride, padding, groups: int, height, tiles):
    """What every tile looks at: (B, C, H, W) -> (B, G, H', tiles, window, C / G)."""
    (rows, columns), (down, across), (top, left) = kernel_size, stride, padding
    span = (TILE - 1) * across + columns

    def reach(outputs, step: int, taps: int):
        return op.Add(op.Mul(op.Sub(outputs, _ints(1)), _ints(step)), _ints(taps))

    tall, wide = reach(height, down, rows), reach(op.Mul(tiles, _ints(TILE)), across, columns)
    bottom = op.Sub(op.Sub(tall, _ints(top)), op.Shape(input, start=2, end=3))
    right = op.Sub(op.Sub(wide, _ints(left)), op.Shape(input, start=3))
    input = op.Reshape(input, _join(0, groups, -1, op.Shape(input, start=2)))
    input = op.Pad(op.Transpose(input, perm=[0, 1, 3, 4, 2]), _join(0, 0, top, left, 0, 0, 0, bottom, right, 0))
    # One gather from the pixels in their order: a tile's first pixel, and from there the pixels of the window.
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    first_row = op.Mul(op.Mul(op.Range(zero, op.Squeeze(height), one), _ints(down)), wide)
    first_column = op.Mul(op.Range(zero, op.Squeeze(tiles), one), _ints(TILE * across))
    row, column = _ints(*list(range(rows)) * span), _ints(*(n for n in range(span) for _ in range(rows)))
    first = op.Add(op.Unsqueeze(first_row, _ints(1)), first_column)
    pixels = op.Add(op.Unsqueeze(first, _ints(2)), op.Add(op.Mul(row, wide), column))
    channels = op.Shape(input, start=4)
    return op.Gather(op.Reshape(input, _join(0, 0, -1, channels)), pixels, axis=2)
