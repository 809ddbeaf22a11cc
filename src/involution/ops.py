"""The three operators `torch.ops.involution.*` and the function `involution2d`.

Involution is bilinear in input and kernel, so its two gradients are bilinear as well and the three operators are
closed under differentiation: each one's derivative is another of them, to any order.

The schemas live here, so the operators exist, trace and export the same whether or not anything was compiled. The
compiled kernels are registered for the keys CPU and CUDA when their library is loaded; until then, and on other
devices, the composite kernels below serve: they load the library at the first call, or run the reference.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import extension, reference


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LIMIT = 2**31  # of strides, paddings and dilations, so that no product of them overflows
_WINDOW = "int[2] stride, int[2] padding, int[2] dilation"
_SCHEMAS = {
    "involution2d": f"(Tensor input, Tensor kernel, {_WINDOW}) -> Tensor",
    "involution2d_input_grad": f"(Tensor grad_output, Tensor kernel, SymInt[2] input_size, {_WINDOW}) -> Tensor",
    "involution2d_kernel_grad": (
        f"(Tensor grad_output, Tensor input, SymInt groups, SymInt[2] kernel_size, {_WINDOW}) -> Tensor"
    ),
}


def involution2d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Applies to every pixel its own kernel, shared by the channels of a group (arXiv 2103.06255, equation 4).

    `Y[b, c, i, j] = sum over u, v of kernel[b, c // (C / G), u, v, i, j] * input[b, c, i*s + u*d - p, j*s + v*d - p]`,
    with zeros outside of the input.

    Args:
        input: (B, C, H, W), in any memory format; the output takes the same.
        kernel: (B, G, Kh, Kw, H', W') with C divisible by G, read in place whatever its strides. It decides kernel
            size and number of groups. Its dtype is the input's; under autocast the two may differ.
        stride: one number or (vertical, horizontal).
        padding: one number or a pair. `None` is "same", `dilation * (K - 1) / 2`, for kernels of odd size.
        dilation: one number or a pair.

    Returns:
        (B, C, H', W') with `H' = (H + 2 * padding - dilation * (Kh - 1) - 1) // stride + 1`, in the input's dtype.
        Sums are taken in float32 (float64 for float64).

    Raises:
        NotImplementedError: in forward-mode automatic differentiation.
        TypeError: something is not a tensor of a floating point dtype, or the dtypes of input and kernel differ.
        ValueError: shapes, devices or window parameters do not fit; the message names the argument, what was given
            and what was expected.
    """
    for name, tensor in (("input", input), ("kernel", kernel)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"involution2d: {name} is {type(tensor).__name__}, expected a torch.Tensor")
    if kernel.dim() != 6:
        raise ValueError(f"involution2d: kernel has {kernel.dim()} dimensions, expected 6 (B, G, Kh, Kw, H', W')")
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if padding is None:
        if kernel.shape[2] % 2 == 0 or kernel.shape[3] % 2 == 0:
            raise ValueError(
                "involution2d: padding is None, which needs a kernel of odd size, but kernel has "
                f"{kernel.shape[2]} x {kernel.shape[3]} taps: give padding explicitly"
            )
        padding = [dilation[n] * (kernel.shape[2 + n] // 2) for n in range(2)]
    else:
        padding = _pair("padding", padding, 0)
    # Operators registered from Python drop forward-mode tangents without a word: the derivative would be a wrong zero.
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in (input, kernel)):
        raise NotImplementedError("involution2d has no forward-mode derivative: use reverse mode, torch.autograd.grad")
    _check(input, kernel, stride, padding, dilation)
    return torch.ops.involution.involution2d.default(input, kernel, stride, padding, dilation)


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else None
    if pair is None or len(pair) != 2 or not all(isinstance(v, int) and least <= v < _LIMIT for v in pair):
        raise ValueError(
            f"involution2d: {name} is {value!r}, expected an int >= {least} (below 2**31) or a pair of them"
        )
    return pair


def _check(input: Tensor, kernel: Tensor, stride, padding, dilation) -> None:
    if input.dim() != 4:
        raise ValueError(f"involution2d: input has {input.dim()} dimensions, expected 4 (B, C, H, W)")
    for name, tensor in (("input", input), ("kernel", kernel)):
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"involution2d: {name} has dtype {tensor.dtype}, expected one of {_DTYPES}")
    if kernel.dtype != input.dtype and not (
        input.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(input.device.type)
    ):
        raise TypeError(
            f"involution2d: kernel has dtype {kernel.dtype}, expected that of input, {input.dtype} "
            "(they may differ under torch.autocast only)"
        )
    if kernel.device != input.device:
        raise ValueError(f"involution2d: kernel is on {kernel.device}, expected the device of input, {input.device}")
    if kernel.shape[1] == 0 or input.shape[1] % kernel.shape[1] != 0:
        raise ValueError(
            f"involution2d: input has {input.shape[1]} channels, expected a multiple of kernel's "
            f"{kernel.shape[1]} groups"
        )
    if kernel.shape[2] == 0 or kernel.shape[3] == 0:
        raise ValueError(f"involution2d: kernel has {kernel.shape[2]} x {kernel.shape[3]} taps, expected at least one")
    size = [_output_size(n, input, kernel, stride, padding, dilation) for n in (0, 1)]
    if kernel.shape[0] != input.shape[0] or kernel.shape[4] != size[0] or kernel.shape[5] != size[1]:
        expected = (input.shape[0], *kernel.shape[1:4], *size)
        raise ValueError(
            f"involution2d: kernel has shape {tuple(kernel.shape)}, expected {expected} (B, G, Kh, Kw, H', W') for "
            f"input {tuple(input.shape)}, stride {stride}, padding {padding}, dilation {dilation}"
        )


def _output_size(n: int, input: Tensor, kernel: Tensor, stride, padding, dilation) -> int:
    size, window = input.shape[2 + n] + 2 * padding[n], dilation[n] * (kernel.shape[2 + n] - 1) + 1
    if size < window:
        raise ValueError(
            f"involution2d: input is {size} {('high', 'wide')[n]} with its padding, expected at least the {window} of "
            "the window"
        )
    return (size - window) // stride[n] + 1


def _empty_image(like: Tensor, height: int, width: int) -> Tensor:
    # The C++ side has the same rule (`is_channels_last` in geometry.h) and says why.
    memory_format = torch.channels_last if like.stride(1) < like.stride(3) else torch.contiguous_format
    shape = (like.shape[0], like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


# --- Composite kernels: load the library at the first call; run the reference where there is none ---


def _involution2d(input, kernel, stride, padding, dilation):
    if extension.load(input.device.type):
        return torch.ops.involution.involution2d.default(input, kernel, stride, padding, dilation)
    result = _empty_image(input, kernel.shape[4], kernel.shape[5])
    if result.numel() == 0:
        return result
    return result.copy_(reference.involution2d(input, kernel, stride, padding, dilation))


def _involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation):
    if extension.load(kernel.device.type):
        op = torch.ops.involution.involution2d_input_grad.default
        return op(grad_output, kernel, input_size, stride, padding, dilation)
    result = _empty_image(grad_output, *input_size)
    if result.numel() == 0:
        return result
    return result.copy_(reference.involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation))


def _involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation):
    if extension.load(input.device.type):
        op = torch.ops.involution.involution2d_kernel_grad.default
        return op(grad_output, input, groups, kernel_size, stride, padding, dilation)
    result = _fake_involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation)
    if grad_output.numel() == 0:
        return result.zero_()
    return result.copy_(
        reference.involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation)
    )


# --- Fake kernels: shapes and strides for tracing ---


def _fake_involution2d(input, kernel, stride, padding, dilation):
    _check(input, kernel, stride, padding, dilation)
    return _empty_image(input, kernel.shape[4], kernel.shape[5])


def _fake_involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation):
    return _empty_image(grad_output, *input_size)


def _fake_involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation):
    batch, _, height, width = grad_output.shape
    if input.stride(1) < input.stride(3):
        return input.new_empty((batch, height, width, groups, *kernel_size)).permute(0, 3, 4, 5, 1, 2)
    return input.new_empty((batch, groups, *kernel_size, height, width))


# --- Autograd ---


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.arguments = inputs[2:]


def _involution2d_backward(ctx, grad):
    input, kernel = ctx.saved_tensors
    ops = torch.ops.involution
    grad_input = grad_kernel = None
    if ctx.needs_input_grad[0]:
        grad_input = ops.involution2d_input_grad(grad, kernel, input.shape[2:], *ctx.arguments)
    if ctx.needs_input_grad[1]:
        groups, kernel_size = kernel.shape[1], kernel.shape[2:4]
        grad_kernel = ops.involution2d_kernel_grad(grad, input, groups, kernel_size, *ctx.arguments)
    return grad_input, grad_kernel, None, None, None


def _input_grad_backward(ctx, grad):
    grad_output, kernel = ctx.saved_tensors
    _, *window = ctx.arguments
    ops = torch.ops.involution
    grad_grad_output = grad_kernel = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = ops.involution2d(grad, kernel, *window)
    if ctx.needs_input_grad[1]:
        groups, kernel_size = kernel.shape[1], kernel.shape[2:4]
        grad_kernel = ops.involution2d_kernel_grad(grad_output, grad, groups, kernel_size, *window)
    return grad_grad_output, grad_kernel, None, None, None, None


def _kernel_grad_backward(ctx, grad):
    grad_output, input = ctx.saved_tensors
    _, _, *window = ctx.arguments
    ops = torch.ops.involution
    grad_grad_output = grad_input = None
    if ctx.needs_input_grad[0]:
        grad_grad_output = ops.involution2d(input, grad, *window)
    if ctx.needs_input_grad[1]:
        grad_input = ops.involution2d_input_grad(grad_output, grad, input.shape[2:], *window)
    return grad_grad_output, grad_input, None, None, None, None, None


# --- Autocast: as for convolutions, everything but float64 goes to the autocast dtype; gradients stay in theirs ---


def _autocast_kernel(device_type: str):
    def autocast(input, kernel, *window):
        dtype = torch.get_autocast_dtype(device_type)
        input, kernel = (t if t.dtype == torch.float64 else t.to(dtype) for t in (input, kernel))
        with torch.autocast(device_type, enabled=False):
            return torch.ops.involution.involution2d.default(input, kernel, *window)

    return autocast


# --- FLOPs: a multiplication and an addition for every tap and channel, in all three ---


def _flops(image_shape, kernel_shape, *arguments, out_shape=None, **kwargs) -> int:
    return 2 * (image_shape[1] // kernel_shape[1]) * math.prod(kernel_shape)


def _kernel_grad_flops(grad_output_shape, input_shape, *arguments, out_shape=None, **kwargs) -> int:
    return _flops(input_shape, out_shape)


def _register() -> None:
    kernels = {
        "involution2d": (_involution2d, _fake_involution2d, _involution2d_backward),
        "involution2d_input_grad": (_involution2d_input_grad, _fake_involution2d_input_grad, _input_grad_backward),
        "involution2d_kernel_grad": (_involution2d_kernel_grad, _fake_involution2d_kernel_grad, _kernel_grad_backward),
    }
    for name, (composite, fake, backward) in kernels.items():
        qualified = f"involution::{name}"
        torch.library.define(qualified, _SCHEMAS[name])
        torch.library.impl(qualified, "default")(composite)
        torch.library.register_fake(qualified)(fake)
        torch.library.register_autograd(qualified, backward, setup_context=_save)
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        torch.library.impl("involution::involution2d", key)(_autocast_kernel(device_type))
    ops = torch.ops.involution
    register_flop_formula([ops.involution2d, ops.involution2d_input_grad])(_flops)
    register_flop_formula(ops.involution2d_kernel_grad)(_kernel_grad_flops)


# A second definition in one process is an error of the dispatcher, so a reloaded module must not repeat it.
if not hasattr(torch.ops.involution, "involution2d"):
    _register()
