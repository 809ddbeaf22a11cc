"""Registers the operators `torch.ops.involution.*`: schemas, composite and fake kernels, autograd, autocast, FLOPs.

The operators are `involution2d` and its two gradients `involution2d_input_grad` and `involution2d_kernel_grad`, and
`involution2d_fused`, which generates its kernel by the 1x1 convolution at the end of the kernel generation, and its
gradients `involution2d_fused_grad`. A Kernel Hub kernel has the same operators in another namespace (`_ops`).

The schemas are registered from Python, so that the operators exist, trace and export whether or not anything is
compiled. (In a C++ program, the compiled library registers them: csrc/schemas.h.) Loading a compiled library registers
kernels for the dispatch keys CPU and CUDA. Until then, and on other devices, the composite kernels run: they load the
library on their first call, or run the loop over the taps.
"""

import ast
import math
import os
import sys
from collections.abc import Callable

import torch
from torch._decomp import register_decomposition
from torch._library.utils import get_layout_constraint_tag
from torch.utils.flop_counter import register_flop_formula

from . import autocast, decomposition, extension, generation, libraries, reference, taps
from ._ops import add_op_namespace_prefix, ops
from .arguments import check_generation, check_pair, check_scale_and_shift
from .transforms import GRADIENTS, bilinear


def _read_schemas() -> dict[str, str]:
    """The schemas in csrc/schemas.h, by the names of their operators.

    The C++ libraries define them in processes without Python. The strings of that array are also a tuple in Python.
    """
    text = (libraries.CSRC / "schemas.h").read_text()
    start = text.index("kSchemas[] = {") + len("kSchemas[] = {")
    schemas = ast.literal_eval(f"({text[start : text.index('};', start)]})")
    return {schema[: schema.index("(")]: schema[schema.index("(") :] for schema in schemas}


_SCHEMAS = _read_schemas()


# --- Composite kernels: load the library on the first call, or run the loop over the taps if it cannot be loaded ---


def _involution2d(input, kernel, stride, padding, dilation):
    if extension.load(input.device.type):
        return ops.involution2d.default(input, kernel, stride, padding, dilation)
    result = taps.empty_image(input, kernel.shape[4], kernel.shape[5])
    if result.numel() == 0:
        return result
    return result.copy_(taps.involution2d(input, kernel, stride, padding, dilation))


def _involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation):
    if extension.load(kernel.device.type):
        op = ops.involution2d_input_grad.default
        return op(grad_output, kernel, input_size, stride, padding, dilation)
    result = taps.empty_image(grad_output, *input_size)
    if result.numel() == 0:
        return result
    return result.copy_(taps.involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation))


def _involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation):
    if extension.load(input.device.type):
        op = ops.involution2d_kernel_grad.default
        return op(grad_output, input, groups, kernel_size, stride, padding, dilation)
    if grad_output.numel() == 0:
        return taps.empty_kernel(input, groups, kernel_size, grad_output.shape[2:]).zero_()
    return taps.involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation)


def _involution2d_fused(input, features, *arguments):
    if extension.load(input.device.type):
        return ops.involution2d_fused.default(input, features, *arguments)
    result = taps.empty_image(input, features.shape[2], features.shape[3])
    if result.numel() == 0:
        return result
    return result.copy_(reference.involution2d_fused(input, features, *arguments, involution2d=taps.involution2d))


def _involution2d_fused_grad(grad_output, input, features, weight, bias, kernel_size, *window):
    if input.device.type == "cpu" and extension.load("cpu"):  # There is no such kernel for other devices.
        op = ops.involution2d_fused_grad.default
        return op(grad_output, input, features, weight, bias, kernel_size, *window)
    return _compose_fused_grad(grad_output, input, features, weight, bias, kernel_size, *window)


def _compose_fused_grad(grad_output, input, features, weight, bias, kernel_size, *window):
    kernel = reference.generated_kernel(features, weight, bias, kernel_size)
    groups, size = kernel.shape[1], input.shape[2:]
    grad_input = ops.involution2d_input_grad.default(grad_output, kernel, size, *window)
    del kernel  # Its gradient is as large.
    grad_kernel = ops.involution2d_kernel_grad.default(grad_output, input, groups, kernel_size, *window)
    grads = reference.generated_kernel_gradients(grad_kernel, features, weight, (True, True, True))
    return grad_input, taps.empty_image(features, *features.shape[2:]).copy_(grads[0]), *grads[1:]


# --- Fake kernels: shapes and strides for tracing ---


def _keep_in_inductor(op) -> None:
    """Makes Inductor call `op` instead of its decomposition.

    Inductor does so for any operator that it has no kernel for, unless the environment variable CI is set: then it
    raises an error for operators that have a decomposition, which keeps PyTorch's own list of them complete.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if os.environ.get("CI") and lowering is not None and op not in lowering.lowerings:
        constraint = lowering.tag_to_layout_constraint(get_layout_constraint_tag(op))
        lowering.make_fallback(op, layout_constraint=constraint, warn=False)


def _fake_involution2d(input, kernel, stride, padding, dilation):
    _keep_in_inductor(ops.involution2d.default)
    check_pair("involution2d", input, kernel, stride, padding, dilation)
    return taps.empty_image(input, kernel.shape[4], kernel.shape[5])


def _fake_involution2d_input_grad(grad_output, kernel, input_size, stride, padding, dilation):
    return taps.empty_image(grad_output, *input_size)


def _fake_involution2d_kernel_grad(grad_output, input, groups, kernel_size, stride, padding, dilation):
    return taps.empty_kernel(input, groups, kernel_size, grad_output.shape[2:])


def _fake_involution2d_fused(
    input, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation
):
    _keep_in_inductor(ops.involution2d_fused.default)
    check_generation("involution2d_fused", input, features, weight, bias, kernel_size, stride, padding, dilation)
    check_scale_and_shift("involution2d_fused", input, scale, shift)
    return taps.empty_image(input, features.shape[2], features.shape[3])


def _fake_involution2d_fused_grad(grad_output, input, features, weight, bias, kernel_size, stride, padding, dilation):
    return (
        taps.empty_image(grad_output, input.shape[2], input.shape[3]),
        taps.empty_image(features, features.shape[2], features.shape[3]),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
    )


# --- Autograd ---


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.arguments = inputs[2:]


def _backward(name: str) -> Callable:
    def backward(ctx, grad):
        with autocast.disabled(grad.device.type):
            grads = GRADIENTS[name](ctx.needs_input_grad, grad, *ctx.saved_tensors, *ctx.arguments)
        return *grads, *[None] * len(ctx.arguments)

    return backward


def _save_fused(ctx, inputs, output):
    input, features, weight, bias, scale, shift, relu, *ctx.arguments = inputs
    ctx.save_for_backward(input, features, weight, bias, scale, shift, output if relu else None)


def _fused_backward(ctx, grad):
    with autocast.disabled(grad.device.type):
        grads = _fused_gradients(ctx.needs_input_grad, grad, *ctx.saved_tensors, *ctx.arguments)
    return *grads, None, *[None] * len(ctx.arguments)


def _fused_gradients(needs, grad, input, features, weight, bias, scale, shift, rectified, kernel_size, *window):
    """Generates the kernel again and combines the gradients of involution and convolution.

    `rectified` is the output if it was rectified by ReLU, otherwise None.
    """
    needs_input, needs_features, needs_weight, needs_bias, needs_scale, needs_shift, *_ = needs
    grad_input = grad_features = grad_weight = grad_bias = grad_scale = grad_shift = None
    in_blocks = generation.computes_in_blocks(needs, features)
    kernel = None
    if (needs_input and not in_blocks) or needs_scale:
        kernel = reference.generated_kernel(features, weight, bias, kernel_size)
    if rectified is not None:
        grad = torch.ops.aten.threshold_backward(grad, rectified, 0)  # that of ReLU
    if needs_shift:
        grad_shift = grad.sum((0, 2, 3), dtype=shift.dtype)
    if needs_scale:
        grad_scale = (grad.to(scale.dtype) * bilinear("involution2d", input, kernel, *window)).sum((0, 2, 3))
    if scale is not None:
        grad = (grad * scale[:, None, None]).to(grad.dtype)
    if in_blocks:
        arguments = (grad, input, features, weight, bias, kernel_size, *window)
        return *generation.gradients_in_blocks(needs, *arguments), grad_scale, grad_shift
    if needs_input:
        grad_input = bilinear("involution2d_input_grad", grad, kernel, input.shape[2:], *window)
    del kernel  # Its gradient is as large.
    if needs_features or needs_weight or needs_bias:
        groups = weight.shape[0] // math.prod(kernel_size)
        grad_kernel = bilinear("involution2d_kernel_grad", grad, input, groups, kernel_size, *window)
        grad_features, grad_weight, grad_bias = reference.generated_kernel_gradients(
            grad_kernel, features, weight, (needs_features, needs_weight, needs_bias)
        )
    return grad_input, grad_features, grad_weight, grad_bias, grad_scale, grad_shift


def _save_nothing(ctx, inputs, output):
    pass


def _fused_grad_backward(ctx, *grads):
    raise NotImplementedError(
        "involution2d_fused_grad computes first derivatives only, and has none of its own: call it without gradients"
    )


# --- FLOPs: one multiplication and one addition for each tap and channel, in all three bilinear operators ---


def _flops(image_shape, kernel_shape, *arguments, out_shape=None, **kwargs) -> int:
    return 2 * (image_shape[1] // kernel_shape[1]) * math.prod(kernel_shape)


def _kernel_grad_flops(grad_output_shape, input_shape, *arguments, out_shape=None, **kwargs) -> int:
    return _flops(input_shape, out_shape)


def _fused_flops(input_shape, features_shape, weight_shape, *arguments, out_shape=None, **kwargs) -> int:
    # The convolution computes G * Kh * Kw values for each output pixel, each of which is used by C / G channels.
    batch, channels, height, width = out_shape
    taps = math.prod(arguments[4])
    return 2 * batch * height * width * (weight_shape[0] * weight_shape[1] + channels * taps)


def _fused_grad_flops(grad_output_shape, input_shape, features_shape, weight_shape, *arguments, **kwargs) -> int:
    # The convolution is computed once and has two gradients. The involution has two.
    batch, channels, height, width = grad_output_shape
    taps = math.prod(arguments[1])
    return 2 * batch * height * width * (3 * weight_shape[0] * weight_shape[1] + 2 * channels * taps)


# --- Registration ---


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
        "involution2d_fused_grad": (
            _involution2d_fused_grad, _fake_involution2d_fused_grad, _save_nothing, _fused_grad_backward,
        ),
    }  # fmt: skip
    for name, (composite, fake, save, backward) in kernels.items():
        qualified = add_op_namespace_prefix(name)
        if not hasattr(ops, name):
            torch.library.define(qualified, _SCHEMAS[name])
        _check_schema(qualified, getattr(ops, name).default._schema, _SCHEMAS[name])
        torch.library.impl(qualified, "default")(composite)
        torch.library.register_fake(qualified)(fake)
        torch.library.register_autograd(qualified, backward, setup_context=save)
    for name, tensors in (("involution2d", 2), ("involution2d_fused", 4)):
        op = getattr(ops, name).default
        torch.library.impl(add_op_namespace_prefix(name), autocast.KEYS)(autocast.casting(op, tensors))
        register_decomposition(op)(getattr(decomposition, name))
        # Without this, fake tensors with symbolic sizes run the decomposition, which is slower than the fake kernel.
        register_decomposition(op, type="meta")(kernels[name][1])
    register_flop_formula([ops.involution2d, ops.involution2d_input_grad])(_flops)
    register_flop_formula(ops.involution2d_kernel_grad)(_kernel_grad_flops)
    register_flop_formula(ops.involution2d_fused)(_fused_flops)
    register_flop_formula(ops.involution2d_fused_grad)(_fused_grad_flops)


def _check_schema(qualified: str, registered: torch.FunctionSchema, schema: str) -> None:
    """Raises ImportError if an operator that existed already has another schema.

    It may exist: a C++ program that loads a library before it starts Python has defined it.
    """
    if registered != torch._C.parse_schema(qualified + schema):
        namespace = qualified.split("::")[0]
        raise ImportError(
            f"another package has registered the operator `{registered}`, expected `{qualified}{schema}`. One process "
            f"cannot use both packages, because both need the namespace torch.ops.{namespace}. The package "
            "`involution` of 2021 (Involution-PyTorch) registers such an operator: uninstall it, and use "
            "`involution.compat.tasaki_lab`"
        )


def _is_registered() -> bool:
    key = torch._C.DispatchKey.CompositeExplicitAutograd
    return hasattr(ops, "involution2d") and ops.involution2d.default.has_kernel_for_dispatch_key(key)


# A second registration in one process, as when this module is reloaded, is an error.
if not _is_registered():
    _register()
