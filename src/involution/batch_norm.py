"""Involution followed by BatchNorm in training mode, in less memory."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import arguments, autocast, dispatch, generation
from .reference import accumulation_dtype, generated_kernel, generated_kernel_gradients
from .transforms import bilinear, is_transformed


def involution2d_batch_norm(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    kernel_size: int | Sequence[int] = 7,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | None = None,
    dilation: int | Sequence[int] = 1,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Applies `involution2d_fused` and BatchNorm in training mode, without keeping the kernel or BatchNorm's input.

    The kernel is about three times the size of the activation. The backward pass computes both tensors again. The
    function is equivalent to:

        output = involution2d_fused(input, features, weight, bias, kernel_size, stride, padding, dilation)
        output = F.batch_norm(output, running_mean, running_var, gamma, beta, True, momentum, eps)

    This composition runs under the transforms of `torch.func`, in forward mode, while a model is traced or compiled,
    and for empty batches.

    Args:
        input, features, weight, bias: see `involution2d_fused`.
        running_mean, running_var: (C), updated in place, or both None.
        gamma, beta: (C), the weight and bias of the BatchNorm, or None. These four have the dtype of the input or the
            dtype that sums are accumulated in: float64 for a float64 input, float32 for all others.
        kernel_size, stride, padding, dilation: see `involution2d_fused`.
        momentum, eps: see `torch.nn.functional.batch_norm`.

    Returns:
        (B, C, H', W'), see `involution2d`.

    Raises:
        TypeError, ValueError: see `involution2d`; also a ValueError if a channel has a single value to normalize.
    """
    name = "involution2d_batch_norm"
    vectors = {"running_mean": running_mean, "running_var": running_var, "gamma": gamma, "beta": beta}
    arguments.check_types(name, input=input, features=features, weight=weight)
    arguments.check_optional_types(name, bias=bias, **vectors)
    kernel_size = arguments.per_dimension(name, "kernel_size", kernel_size, 1)
    if not arguments.is_batched(name, input, 2, "features", features, arguments.FEATURES):
        raise ValueError(f"{name}: input has shape {tuple(input.shape)}, expected a batch (B, C, H, W)")
    window = arguments.window(name, kernel_size, stride, padding, dilation)
    height, width = arguments.check_generation(name, input, features, weight, bias, kernel_size, *window)
    arguments.check_channel_vectors(name, input, (input.dtype, accumulation_dtype(input.dtype)), **vectors)
    values = input.shape[0] * height * width
    if values == 1:
        raise ValueError(f"{name}: input has a single value in each channel of the output, expected more than one")

    generation, norm = (input, features, weight, bias), (running_mean, running_var, gamma, beta)
    if values == 0 or dispatch.is_traced() or is_transformed():
        output = dispatch.involution2d_fused(*generation, None, None, False, kernel_size, *window)
        return F.batch_norm(output, *norm, True, momentum, eps)
    function = _NormalizedInvolution.apply
    if autocast.is_enabled(input.device.type):
        function = autocast.casting(function, len(generation))
    return function(*generation, *norm, kernel_size, window, momentum, eps)


class _NormalizedInvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, input, features, weight, bias, running_mean, running_var, gamma, beta, kernel_size, window, momentum, eps
    ):
        output = dispatch.involution2d_fused(input, features, weight, bias, None, None, False, kernel_size, *window)
        output, mean, inverse_std = torch.native_batch_norm(
            output, gamma, beta, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(input, features, weight, bias, gamma, mean, inverse_std)
        ctx.kernel_size, ctx.window, ctx.eps = kernel_size, window, eps
        return output

    @staticmethod
    def backward(ctx, grad):
        with autocast.disabled(grad.device.type):
            return _NormalizedInvolution._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx, grad):
        input, features, weight, bias, gamma, mean, inverse_std = ctx.saved_tensors
        needs_input, *needs_generation = ctx.needs_input_grad[:4]
        needs_gamma, needs_beta = ctx.needs_input_grad[6:8]
        in_blocks = generation.computes_in_blocks(ctx.needs_input_grad, features)
        arguments = (ctx.kernel_size, *ctx.window)
        if in_blocks:
            output = dispatch.involution2d_fused(input, features, weight, bias, None, None, False, *arguments)
        else:
            kernel = generated_kernel(features, weight, bias, ctx.kernel_size)
            output = bilinear("involution2d", input, kernel, *ctx.window)
        grad, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad, output, gamma, None, None, mean, inverse_std, True, ctx.eps, [True, needs_gamma, needs_beta]
        )
        del output
        grad_norm = grad_gamma if needs_gamma else None, grad_beta if needs_beta else None
        if in_blocks:
            needs = ctx.needs_input_grad
            grads = generation.gradients_in_blocks(needs, grad, input, features, weight, bias, *arguments)
            return *grads, None, None, *grad_norm, *[None] * 4
        groups = kernel.shape[1]
        grad_input = grad_features = grad_weight = grad_bias = None
        if needs_input:
            grad_input = bilinear("involution2d_input_grad", grad, kernel, input.shape[2:], *ctx.window)
        del kernel  # Its gradient is as large.
        if any(needs_generation):
            grad_kernel = bilinear("involution2d_kernel_grad", grad, input, groups, ctx.kernel_size, *ctx.window)
            grad_features, grad_weight, grad_bias = generated_kernel_gradients(
                grad_kernel, features, weight, needs_generation
            )
        return grad_input, grad_features, grad_weight, grad_bias, None, None, *grad_norm, *[None] * 4
