"""The operators `torch.ops.involution.*` and the functions `involution2d` and `involution2d_fused`.

A kernel from the Hub has the same operators in another namespace: `_ops` tells which.

Involution is bilinear in input and kernel, so its two gradients are bilinear as well and the three operators are
closed under differentiation: each one's derivative is another of them, to any order. The fourth, `involution2d_fused`,
makes its kernel itself, by the 1x1 convolution that ends the kernel generation; its derivative makes the kernel again
and is composed of the other three.

The schemas live here, so the operators exist, trace and export the same whether or not anything was compiled. The
compiled kernels are registered for the keys CPU and CUDA when their library is loaded; until then, and on other
devices, the composite kernels below serve: they load the library at the first call, or run the reference.

PyTorch gives operators registered from Python no forward-mode derivative and no rules for `torch.func`. Under those
the functions call `_Bilinear` in place of the operators, an autograd function that has both.
"""

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._decomp import register_decomposition
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._library.utils import get_layout_constraint_tag
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import decomposition, extension, reference, sharding
from ._ops import add_op_namespace_prefix, ops


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LIMIT = 2**31  # of strides, paddings and dilations, so that no product of them overflows
_WINDOW = "int[2] stride, int[2] padding, int[2] dilation"
_SCHEMAS = {
    "involution2d": f"(Tensor input, Tensor kernel, {_WINDOW}) -> Tensor",
    "involution2d_input_grad": f"(Tensor grad_output, Tensor kernel, SymInt[2] input_size, {_WINDOW}) -> Tensor",
    "involution2d_kernel_grad": (
        f"(Tensor grad_output, Tensor input, SymInt groups, SymInt[2] kernel_size, {_WINDOW}) -> Tensor"
    ),
    "involution2d_fused": (
        "(Tensor input, Tensor features, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, bool relu, "
        f"int[2] kernel_size, {_WINDOW}) -> Tensor"
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
        Sums are taken in float32 (float64 for float64). It has derivatives of any order, in reverse and forward mode,
        and works under the transforms of `torch.func`; `vmap` takes the mapped dimension as part of the batch.

    Raises:
        TypeError: something is not a tensor of a floating point dtype, or the dtypes of input and kernel differ.
        ValueError: shapes, devices or window parameters do not fit; the message names the argument, what was given
            and what was expected.
    """
    _check_tensors(input=input, kernel=kernel)
    if kernel.dim() != 6:
        raise ValueError(f"involution2d: kernel has {kernel.dim()} dimensions, expected 6 (B, G, Kh, Kw, H', W')")
    window = _window(kernel.shape[2:4], stride, padding, dilation)
    _check(input, kernel, *window)
    if _is_transformed():
        return _call_transformed(partial(_bilinear, "involution2d"), input.device.type, (input, kernel), *window)
    if _is_traced_for_onnx():
        return decomposition.traced_involution2d(input, kernel, *window)
    if type(input) is not Tensor:
        sharding.prepare(input)
    return ops.involution2d.default(input, kernel, *window)


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
    """`involution2d` with the kernel `conv2d(features, weight, bias)`, which is never written to memory.

    That 1x1 convolution is the last step of the kernel generation (paper, equation 6). For the backward pass the
    kernel is made again from the features. In forward mode and under the transforms of `torch.func` the kernel is
    written to memory after all. Equivalent to:

        kernel = F.conv2d(features, weight, bias).unflatten(1, (G, Kh, Kw))
        output = involution2d(input, kernel, stride, padding, dilation)
        output = output * scale[:, None, None] + shift[:, None, None]  # where they are given
        output = output.relu()  # where relu is true

    Args:
        input: (B, C, H, W), in any memory format; the output takes the same.
        features: (B, R, H', W').
        weight: (G * Kh * Kw, R, 1, 1) with C divisible by G, as of `torch.nn.Conv2d`; its first dimension and the
            kernel size decide the number of groups G.
        bias: (G * Kh * Kw).
        kernel_size: one number or (Kh, Kw).
        stride, padding, dilation: as in `involution2d`.
        scale: (C), of the dtype that sums are taken in: float64 for a float64 input, float32 for all others.
        shift: (C), as `scale`; the two are given together. A BatchNorm in evaluation mode is such a pair.
        relu: whether negative results become zero.

    Returns:
        (B, C, H', W'), as `involution2d`.

    Raises:
        TypeError, ValueError: as `involution2d`.
    """
    tensors = {"input": input, "features": features, "weight": weight, "bias": bias, "scale": scale, "shift": shift}
    _check_tensors(**{name: tensor for name, tensor in tensors.items() if tensor is not None})
    kernel_size = _pair("kernel_size", kernel_size, 1)
    window = _window(kernel_size, stride, padding, dilation)
    _check_fused(input, features, weight, bias, scale, shift, kernel_size, *window)
    arguments = (scale, shift, relu, kernel_size, *window)
    if _is_transformed():
        composition = partial(reference.involution2d_fused, involution2d=partial(_bilinear, "involution2d"))
        return _call_transformed(composition, input.device.type, (input, features, weight, bias), *arguments)
    if _is_traced_for_onnx():
        composition = partial(reference.involution2d_fused, involution2d=decomposition.traced_involution2d)
        return composition(input, features, weight, bias, *arguments)
    if type(input) is not Tensor:
        sharding.prepare(input)
    return ops.involution2d_fused.default(input, features, weight, bias, *arguments)


def _pair(name: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else None
    if pair is None or len(pair) != 2 or not all(isinstance(v, int) and least <= v < _LIMIT for v in pair):
        raise ValueError(
            f"involution2d: {name} is {value!r}, expected an int >= {least} (below 2**31) or a pair of them"
        )
    return pair


def _window(kernel_size, stride, padding, dilation) -> tuple[list[int], list[int], list[int]]:
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if padding is not None:
        return stride, _pair("padding", padding, 0), dilation
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(
            "involution2d: padding is None, which needs a kernel of odd size, but the kernel size is "
            f"{kernel_size[0]} x {kernel_size[1]}: give padding explicitly"
        )
    return stride, [dilation[n] * (kernel_size[n] // 2) for n in range(2)], dilation


def _check_tensors(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"involution2d: {name} is {type(tensor).__name__}, expected a torch.Tensor")


def _check(input: Tensor, kernel: Tensor, stride, padding, dilation) -> None:
    _check_dtypes_and_devices(input=input, kernel=kernel)
    size = _output_size(input, kernel.shape[1], kernel.shape[2:4], stride, padding, dilation)
    if kernel.shape[0] != input.shape[0] or kernel.shape[4] != size[0] or kernel.shape[5] != size[1]:
        expected = (input.shape[0], *kernel.shape[1:4], *size)
        raise ValueError(
            f"involution2d: kernel has shape {tuple(kernel.shape)}, expected {expected} (B, G, Kh, Kw, H', W') for "
            f"input {tuple(input.shape)}, stride {stride}, padding {padding}, dilation {dilation}"
        )


def _check_fused(
    input: Tensor, features: Tensor, weight: Tensor, bias, scale, shift, kernel_size, stride, padding, dilation
) -> None:
    _check_dtypes_and_devices(
        input=input, features=features, weight=weight, **({} if bias is None else {"bias": bias})
    )
    taps = kernel_size[0] * kernel_size[1]
    if features.dim() != 4:
        raise ValueError(f"involution2d: features have {features.dim()} dimensions, expected 4 (B, R, H', W')")
    if weight.dim() != 4 or weight.shape[0] % taps != 0 or tuple(weight.shape[1:]) != (features.shape[1], 1, 1):
        raise ValueError(
            f"involution2d: weight has shape {tuple(weight.shape)}, expected (G * {taps}, {features.shape[1]}, 1, 1) "
            f"for kernel_size {kernel_size} and features {tuple(features.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"involution2d: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    size = _output_size(input, weight.shape[0] // taps, kernel_size, stride, padding, dilation)
    if features.shape[0] != input.shape[0] or features.shape[2] != size[0] or features.shape[3] != size[1]:
        raise ValueError(
            f"involution2d: features have shape {tuple(features.shape)}, expected "
            f"{(input.shape[0], features.shape[1], *size)} (B, R, H', W') for input {tuple(input.shape)}, stride "
            f"{stride}, padding {padding}, dilation {dilation}"
        )
    if (scale is None) != (shift is None):
        raise ValueError("involution2d: scale and shift are given together or not at all")
    for name, tensor in (("scale", scale), ("shift", shift)) if scale is not None else ():
        if tuple(tensor.shape) != (input.shape[1],):
            raise ValueError(f"involution2d: {name} has shape {tuple(tensor.shape)}, expected ({input.shape[1]},)")
        if tensor.dtype != reference.accumulation_dtype(input.dtype):
            raise TypeError(
                f"involution2d: {name} has dtype {tensor.dtype}, expected "
                f"{reference.accumulation_dtype(input.dtype)} for an input of {input.dtype}"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"involution2d: {name} is on {tensor.device}, expected the device of input, {input.device}"
            )


def _check_dtypes_and_devices(input: Tensor, **others: Tensor) -> None:
    for name, tensor in {"input": input, **others}.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"involution2d: {name} has dtype {tensor.dtype}, expected one of {_DTYPES}")
    autocast = _is_autocast(input.device.type)
    for name, tensor in others.items():
        if tensor.dtype != input.dtype and not autocast:
            raise TypeError(
                f"involution2d: {name} has dtype {tensor.dtype}, expected that of input, {input.dtype} "
                "(they may differ under torch.autocast only)"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"involution2d: {name} is on {tensor.device}, expected the device of input, {input.device}"
            )


def _output_size(input: Tensor, groups, kernel_size, stride, padding, dilation) -> list[int]:
    if input.dim() != 4:
        raise ValueError(f"involution2d: input has {input.dim()} dimensions, expected 4 (B, C, H, W)")
    if groups == 0 or input.shape[1] % groups != 0:
        raise ValueError(
            f"involution2d: input has {input.shape[1]} channels, expected a multiple of the number of groups, {groups}"
        )
    if kernel_size[0] == 0 or kernel_size[1] == 0:
        raise ValueError(f"involution2d: kernel has {kernel_size[0]} x {kernel_size[1]} taps, expected at least one")
    output_size = []
    for n, side in enumerate(("high", "wide")):
        size, window = input.shape[2 + n] + 2 * padding[n], dilation[n] * (kernel_size[n] - 1) + 1
        if size < window:
            raise ValueError(
                f"involution2d: input is {size} {side} with its padding, expected at least the {window} of the window"
            )
        output_size.append((size - window) // stride[n] + 1)
    return output_size


def _empty_image(like: Tensor, height: int, width: int) -> Tensor:
    # The C++ side has the same rule (`is_channels_last` in geometry.h) and says why.
    memory_format = torch.channels_last if like.stride(1) < like.stride(3) else torch.contiguous_format
    shape = (like.shape[0], like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


# --- Composite kernels: load the library at the first call; run the reference where there is none ---


def _involution2d(input, kernel, stride, padding, dilation):
    if extension.load(input.device.type):
        return ops.involution2d.default(input, kernel, stride, padding, dilation)
    result = _empty_image(input, kernel.shape[4], kernel.shape[5])
    if result.numel() == 0:
        return result
    return result.copy_(reference.involution2d(input, kernel, stride, padding, dilation))


def _involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation):
    if extension.load(kernel.device.type):
        op = ops.involution2d_input_grad.default
        return op(grad_output, kernel, input_size, stride, padding, dilation)
    result = _empty_image(grad_output, *input_size)
    if result.numel() == 0:
        return result
    return result.copy_(reference.involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation))


def _involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation):
    if extension.load(input.device.type):
        op = ops.involution2d_kernel_grad.default
        return op(grad_output, input, groups, kernel_size, stride, padding, dilation)
    result = _fake_involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation)
    if grad_output.numel() == 0:
        return result.zero_()
    return result.copy_(
        reference.involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation)
    )


def _involution2d_fused(input, features, *arguments):
    if extension.load(input.device.type):
        return ops.involution2d_fused.default(input, features, *arguments)
    result = _empty_image(input, features.shape[2], features.shape[3])
    return result.copy_(reference.involution2d_fused(input, features, *arguments)) if result.numel() > 0 else result


# --- Fake kernels: shapes and strides for tracing ---


def _keep_in_inductor(op) -> None:
    """
    Inductor keeps operators that it has no kernel of, but refuses those with a decomposition where the environment
    says CI, to keep PyTorch's own list complete. There it is told to keep this one.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if os.environ.get("CI") and lowering is not None and op not in lowering.lowerings:
        constraint = lowering.tag_to_layout_constraint(get_layout_constraint_tag(op))
        lowering.make_fallback(op, layout_constraint=constraint, warn=False)


def _fake_involution2d(input, kernel, stride, padding, dilation):
    _keep_in_inductor(ops.involution2d.default)
    _check(input, kernel, stride, padding, dilation)
    return _empty_image(input, kernel.shape[4], kernel.shape[5])


def _fake_involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation):
    return _empty_image(grad_output, *input_size)


def _fake_involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation):
    batch, _, height, width = grad_output.shape
    if input.stride(1) < input.stride(3):
        return input.new_empty((batch, height, width, groups, *kernel_size)).permute(0, 3, 4, 5, 1, 2)
    return input.new_empty((batch, groups, *kernel_size, height, width))


def _fake_involution2d_fused(
    input, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation
):
    _keep_in_inductor(ops.involution2d_fused.default)
    _check_fused(input, features, weight, bias, scale, shift, kernel_size, stride, padding, dilation)
    return _empty_image(input, features.shape[2], features.shape[3])


# --- Autograd ---


def _involution2d_grads(needs, grad, input, kernel, *window):
    grad_input = grad_kernel = None
    if needs[0]:
        grad_input = _bilinear("involution2d_input_grad", grad, kernel, input.shape[2:], *window)
    if needs[1]:
        groups, kernel_size = kernel.shape[1], kernel.shape[2:4]
        grad_kernel = _bilinear("involution2d_kernel_grad", grad, input, groups, kernel_size, *window)
    return grad_input, grad_kernel


def _input_grad_grads(needs, grad, grad_output, kernel, input_size, *window):
    grad_grad_output = grad_kernel = None
    if needs[0]:
        grad_grad_output = _bilinear("involution2d", grad, kernel, *window)
    if needs[1]:
        groups, kernel_size = kernel.shape[1], kernel.shape[2:4]
        grad_kernel = _bilinear("involution2d_kernel_grad", grad_output, grad, groups, kernel_size, *window)
    return grad_grad_output, grad_kernel


def _kernel_grad_grads(needs, grad, grad_output, input, groups, kernel_size, *window):
    grad_grad_output = grad_input = None
    if needs[0]:
        grad_grad_output = _bilinear("involution2d", input, grad, *window)
    if needs[1]:
        grad_input = _bilinear("involution2d_input_grad", grad_output, grad, input.shape[2:], *window)
    return grad_grad_output, grad_input


# For each bilinear operator: (which of the two gradients are needed, grad, *the operator's arguments) -> gradients.
_GRADS: dict[str, Callable] = {
    "involution2d": _involution2d_grads,
    "involution2d_input_grad": _input_grad_grads,
    "involution2d_kernel_grad": _kernel_grad_grads,
}


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.arguments = inputs[2:]


def _backward(name: str) -> Callable:
    def backward(ctx, grad):
        with _autocast_disabled(grad.device.type):
            grads = _GRADS[name](ctx.needs_input_grad, grad, *ctx.saved_tensors, *ctx.arguments)
        return *grads, *[None] * len(ctx.arguments)

    return backward


def _save_fused(ctx, inputs, output):
    input, features, weight, bias, scale, shift, relu, *ctx.arguments = inputs
    ctx.save_for_backward(input, features, weight, bias, scale, shift, output if relu else None)


def _fused_backward(ctx, grad):
    with _autocast_disabled(grad.device.type):
        grads = _fused_grads(ctx.needs_input_grad, grad, *ctx.saved_tensors, *ctx.arguments)
    return *grads, None, *[None] * len(ctx.arguments)


def _fused_grads(needs, grad, input, features, weight, bias, scale, shift, rectified, kernel_size, *window):
    needs_input, needs_features, needs_weight, needs_bias, needs_scale, needs_shift, *_ = needs
    grad_input = grad_features = grad_weight = grad_bias = grad_scale = grad_shift = None
    kernel = None
    if needs_input or needs_scale:
        kernel = reference.generated_kernel(features, weight, bias, kernel_size)
    if rectified is not None:
        grad = torch.where(rectified > 0, grad, 0)
    if needs_shift:
        grad_shift = grad.sum((0, 2, 3), dtype=shift.dtype)
    if needs_scale:
        grad_scale = (grad.to(scale.dtype) * _bilinear("involution2d", input, kernel, *window)).sum((0, 2, 3))
    if scale is not None:
        grad = (grad * scale[:, None, None]).to(grad.dtype)
    if needs_input:
        grad_input = _bilinear("involution2d_input_grad", grad, kernel, input.shape[2:], *window)
    if needs_features or needs_weight or needs_bias:
        groups = weight.shape[0] // math.prod(kernel_size)
        grad_kernel = _bilinear("involution2d_kernel_grad", grad, input, groups, kernel_size, *window)
        grad_kernel = grad_kernel.reshape(features.shape[0], weight.shape[0], *features.shape[2:])
        grad_features, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad_kernel, features, weight, None if bias is None else [weight.shape[0]],
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [needs_features, needs_weight, needs_bias],
        )  # fmt: skip
    return grad_input, grad_features, grad_weight, grad_bias, grad_scale, grad_shift


# --- torch.func and forward mode ---


def _is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is active that operators registered from Python lack."""
    if torch._C._are_functorch_transforms_active():
        # `torch.func.functionalize` takes operators, and no autograd function.
        return retrieve_current_functorch_interpreter().key() != TransformType.Functionalize
    return forward_ad._current_level >= 0


def _is_traced_for_onnx() -> bool:
    """Whether the older exporter of ONNX, which knows PyTorch's own operators alone, records a trace."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def _call_transformed(function: Callable, device_type: str, tensors: tuple[Tensor | None, ...], *arguments) -> Tensor:
    """Calls `function` with what the operators' autocast kernels would make of `tensors`."""
    if _is_autocast(device_type):
        function = _autocast_kernel(function, device_type, len(tensors))
    return function(*tensors, *arguments)


def _bilinear(name: str, first: Tensor, second: Tensor, *arguments) -> Tensor:
    """The operator `name`, with its derivatives and rules where it is transformed."""
    if not _is_transformed():
        return getattr(ops, name).default(first, second, *arguments)
    if torch.compiler.is_compiling():
        # Dynamo traces no autograd function with a jvp, or drops its tangent.
        return getattr(reference, name)(first, second, *arguments)
    # Numbers, since nested transforms take lists apart.
    numbers = [n for argument in arguments for n in (argument if isinstance(argument, Sequence) else [argument])]
    return _Bilinear.apply(name, first, second, *numbers)


def _paired(numbers: Sequence[int]) -> list:
    """The arguments that `numbers` were: the groups, where there are any, and pairs."""
    odd = len(numbers) % 2
    return [*numbers[:odd], *(list(numbers[n : n + 2]) for n in range(odd, len(numbers), 2))]


class _Bilinear(torch.autograd.Function):
    """One of the three bilinear operators. The batch is the first dimension of both tensors and of the result."""

    @staticmethod
    def forward(name, first, second, *numbers):
        return getattr(ops, name).default(first, second, *_paired(numbers))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.name, first, second, *ctx.numbers = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad):
        with _autocast_disabled(grad.device.type):
            arguments = _paired(ctx.numbers)
            grads = _GRADS[ctx.name](ctx.needs_input_grad[1:], grad, *ctx.saved_tensors, *arguments)
        return None, *grads, *[None] * len(ctx.numbers)

    @staticmethod
    def jvp(ctx, _, first_tangent, second_tangent, *numbers):
        first, second = ctx.saved_tensors
        pairs = (first_tangent, second), (first, second_tangent)
        tangents = [_Bilinear.apply(ctx.name, *pair, *ctx.numbers) for pair in pairs if None not in pair]
        return sum(tangents[1:], tangents[0])

    @staticmethod
    def vmap(info, in_dims, name, first, second, *numbers):
        def fold(tensor, dim):
            tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return tensor.flatten(0, 1)

        output = _Bilinear.apply(name, fold(first, in_dims[1]), fold(second, in_dims[2]), *numbers)
        return output.unflatten(0, (info.batch_size, output.shape[0] // info.batch_size)), 0


# --- Autocast: as for convolutions, everything but float64 goes to the autocast dtype; gradients stay in theirs ---


def _is_autocast(device_type: str) -> bool:
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)


def _autocast_disabled(device_type: str) -> AbstractContextManager:
    """For backward passes: they compute in the dtypes of the forward pass, whatever autocast is active by then."""
    return torch.autocast(device_type, enabled=False) if _is_autocast(device_type) else nullcontext()


def _autocast_kernel(function: Callable, device_type: str, tensors: int) -> Callable:
    """`function` with its first `tensors` arguments cast."""

    def autocast(*arguments):
        dtype = torch.get_autocast_dtype(device_type)
        cast = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in arguments[:tensors]]
        with torch.autocast(device_type, enabled=False):
            return function(*cast, *arguments[tensors:])

    return autocast


# --- FLOPs: a multiplication and an addition for every tap and channel, in all three ---


def _flops(image_shape, kernel_shape, *arguments, out_shape=None, **kwargs) -> int:
    return 2 * (image_shape[1] // kernel_shape[1]) * math.prod(kernel_shape)


def _kernel_grad_flops(grad_output_shape, input_shape, *arguments, out_shape=None, **kwargs) -> int:
    return _flops(input_shape, out_shape)


def _fused_flops(input_shape, features_shape, weight_shape, *arguments, out_shape=None, **kwargs) -> int:
    # The convolution makes G * Kh * Kw values for every output pixel, and each serves C / G channels.
    batch, channels, height, width = out_shape
    taps = math.prod(arguments[4])
    return 2 * batch * height * width * (weight_shape[0] * weight_shape[1] + channels * taps)


def _register() -> None:
    kernels: dict[str, tuple[Callable, ...]] = {
        "involution2d": (_involution2d, _fake_involution2d, _save, _backward("involution2d")),
        "involution2d_input_grad": (
            _involution2d_input_grad, _fake_involution2d_input_grad, _save, _backward("involution2d_input_grad"),
        ),
        "involution2d_kernel_grad": (
            _involution2d_kernel_grad, _fake_involution2d_kernel_grad, _save, _backward("involution2d_kernel_grad"),
        ),
        "involution2d_fused": (_involution2d_fused, _fake_involution2d_fused, _save_fused, _fused_backward),
    }  # fmt: skip
    for name, (composite, fake, save, backward) in kernels.items():
        qualified = add_op_namespace_prefix(name)
        torch.library.define(qualified, _SCHEMAS[name])
        torch.library.impl(qualified, "default")(composite)
        torch.library.register_fake(qualified)(fake)
        torch.library.register_autograd(qualified, backward, setup_context=save)
    for name, tensors in (("involution2d", 2), ("involution2d_fused", 4)):
        for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            autocast = _autocast_kernel(getattr(ops, name).default, device_type, tensors)
            torch.library.impl(add_op_namespace_prefix(name), key)(autocast)
    for name in ("involution2d", "involution2d_fused"):
        op = getattr(ops, name).default
        register_decomposition(op)(getattr(decomposition, name))
        # Fake tensors with symbols for sizes would run a decomposition, which is slower, in place of the fake kernel.
        register_decomposition(op, type="meta")(kernels[name][1])
    register_flop_formula([ops.involution2d, ops.involution2d_input_grad])(_flops)
    register_flop_formula(ops.involution2d_kernel_grad)(_kernel_grad_flops)
    register_flop_formula(ops.involution2d_fused)(_fused_flops)


# A second definition in one process is an error of the dispatcher, so a reloaded module must not repeat it.
if not hasattr(ops, "involution2d"):
    _register()
