"""The functions `involution1d`, `involution2d`, `involution3d` and `involution2d_fused`."""

from collections.abc import Callable, Sequence

from torch import Tensor

from . import arguments, dispatch


def involution1d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`involution2d` in one dimension: each position of a sequence has its own kernel.

    Args:
        input: (B, C, L), in any memory format, or (C, L).
        kernel: (B, G, K, L') with C divisible by G, or (G, K, L').
        stride, padding, dilation: ints. `None` is "same" padding, see `involution2d`.

    Returns:
        (B, C, L') or (C, L') with `L' = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1`.

    It is computed as a 2-D involution of images of height 1, without a copy, and supports what that supports.

    Raises:
        TypeError, ValueError: see `involution2d`.
    """
    return _apply("involution1d", 1, dispatch.involution1d, input, kernel, stride, padding, dilation)


def involution2d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Applies to each pixel its own kernel, shared by the channels of a group (arXiv 2103.06255, equation 4).

    `Y[b, c, i, j] = sum over u, v of kernel[b, c // (C / G), u, v, i, j] * input[b, c, i*s + u*d - p, j*s + v*d - p]`,
    with zeros outside of the input.

    Args:
        input: (B, C, H, W), in any memory format, or (C, H, W).
        kernel: (B, G, Kh, Kw, H', W') with C divisible by G, with any strides, or (G, Kh, Kw, H', W') for an input
            without batch. Its shape determines the kernel size and the number of groups. Its dtype is that of the
            input; under autocast the two may differ if neither is float64.
        stride: an int or a pair (vertical, horizontal).
        padding: an int or a pair. `None` is "same" padding, `dilation * (K - 1) / 2`, and requires odd kernel sizes.
        dilation: an int or a pair.

    Returns:
        (B, C, H', W') or (C, H', W') with `H' = (H + 2 * padding - dilation * (Kh - 1) - 1) // stride + 1`, in the
        memory format of the input, and in its dtype or that of autocast. Sums are accumulated in float32 (float64 for
        float64).

    Reverse-mode and forward-mode derivatives of any order and the transforms of `torch.func` are supported; `vmap`
    treats the mapped dimension as part of the batch.

    Raises:
        TypeError: an argument is not a dense tensor of a floating-point dtype, or the dtypes of input and kernel differ.
        ValueError: shapes, devices, stride, padding or dilation are invalid. The message names the argument, the given
            value and the expected one.
    """
    return _apply("involution2d", 2, dispatch.involution2d, input, kernel, stride, padding, dilation)


def involution3d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`involution2d` in three dimensions: each voxel of a volume has its own kernel.

    Args:
        input: (B, C, D, H, W), in any memory format, or (C, D, H, W).
        kernel: (B, G, Kd, Kh, Kw, D', H', W') with C divisible by G, or (G, Kd, Kh, Kw, D', H', W').
        stride, padding, dilation: ints, or sequences of three (depth, vertical, horizontal). `None` is "same" padding,
            see `involution2d`.

    Returns:
        (B, C, D', H', W') or (C, D', H', W') in the dtype and memory format of the input, with sizes as of
        `involution2d`.

    It is computed as the sum of `Kd` 2-D involutions of all frames, and supports what these support.

    Raises:
        TypeError, ValueError: see `involution2d`.
    """
    return _apply("involution3d", 3, dispatch.involution3d, input, kernel, stride, padding, dilation)


def _apply(
    function: str, dimensions: int, involution: Callable, input: Tensor, kernel: Tensor, stride, padding, dilation
) -> Tensor:
    """Checks the arguments of `function` and calls `involution` with a batch."""
    arguments.check_types(function, input=input, kernel=kernel)
    batched = arguments.is_pair_batched(function, input, kernel, dimensions)
    kernel_size = kernel.shape[-2 * dimensions : -dimensions]
    window = arguments.window(function, kernel_size, stride, padding, dilation)
    arguments.check_pair(function, input, kernel, *window)
    if batched:
        return involution(input, kernel, *window)
    return involution(input.unsqueeze(0), kernel.unsqueeze(0), *window).squeeze(0)


def involution2d_fused(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kernel_size: int | Sequence[int] = 7,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Applies `involution2d` with the kernel `conv2d(features, weight, bias)`, without writing the kernel to memory.

    The 1x1 convolution is the last step of the kernel generation (arXiv 2103.06255, equation 6). The function is
    equivalent to:

        kernel = F.conv2d(features, weight, bias).unflatten(1, (G, Kh, Kw))
        output = involution2d(input, kernel, stride, padding, dilation)
        if scale is not None:
            output = output * scale[:, None, None] + shift[:, None, None]
        if relu:
            output = output.relu()

    The backward pass generates the kernel again from the features. The kernel is written to memory in forward mode,
    under the transforms of `torch.func`, in plain PyTorch, and where a separate convolution generates it: for R >= 64
    on CUDA, and for R >= 64 in bfloat16 on CPUs that have instructions for matrices of bfloat16. The backward pass
    writes it, and its gradient, on CUDA, and on CPUs for R > 64 (in bfloat16 for R > 32, in float16 for no R) and for
    derivatives of higher order.

    Args:
        input: (B, C, H, W), in any memory format, or (C, H, W).
        features: (B, R, H', W'), or (R, H', W') for an input without batch. Features, weight and bias have the dtype
            of the input; under autocast they may differ if none is float64.
        weight: (G * Kh * Kw, R, 1, 1) with C divisible by G, the weight of a `torch.nn.Conv2d`. Its first dimension
            and the kernel size determine the number of groups G.
        bias: (G * Kh * Kw), or None.
        kernel_size: an int or a pair (Kh, Kw).
        stride, padding, dilation: see `involution2d`.
        scale: (C), in the dtype that sums are accumulated in: float64 for a float64 input, float32 for all others.
            A BatchNorm in evaluation mode is such a scale with a shift. Default: None.
        shift: (C), in the dtype of `scale`. Give either both or neither of them.
        relu: whether to apply ReLU to the result.

    Returns:
        (B, C, H', W') or (C, H', W'), see `involution2d`.

    Raises:
        TypeError, ValueError: see `involution2d`.
    """
    name = "involution2d_fused"
    arguments.check_types(name, input=input, features=features, weight=weight)
    arguments.check_optional_types(name, bias=bias, scale=scale, shift=shift)
    kernel_size = arguments.per_dimension(name, "kernel_size", kernel_size, 1)
    batched = arguments.is_batched(name, input, 2, "features", features, arguments.FEATURES)
    window = arguments.window(name, kernel_size, stride, padding, dilation)
    arguments.check_generation(name, input, features, weight, bias, kernel_size, *window)
    arguments.check_scale_and_shift(name, input, scale, shift)
    rest = weight, bias, scale, shift, relu, kernel_size, *window
    if batched:
        return dispatch.involution2d_fused(input, features, *rest)
    return dispatch.involution2d_fused(input.unsqueeze(0), features.unsqueeze(0), *rest).squeeze(0)
