"""Shortcuts of eager execution: the values of the plain modules, in less time or memory.

A shortcut computes from a module's parameters instead of calling the module. It is used only where nobody can tell the
difference: no hook, adapter, parametrization, transform or tracer is attached. `benchmarks/shortcut_speed.py` shows
what each one gains.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from .operator_rednet import involution2d_batch_norm


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what its class `kind` does with ordinary tensors, and nothing else."""
    if (
        type(module) is not kind
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "_conv_forward" in module.__dict__  # which a convolution calls in turn
        or _has_any_global_hook()
    ):
        return False
    if torch.compiler.is_compiling():
        return True  # of stand-ins for the parameters, which torch.export has
    for parameter in module._parameters.values():
        # Quantized and distributed weights are tensors of other types, which may not support every operator.
        if parameter is not None and type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
            return False
    return True


def is_pointwise(convolution: nn.Module) -> bool:
    """Whether a module is a plain 1x1 convolution of stride 1, which `involution2d_fused` computes by itself."""
    return (
        is_plain(convolution, nn.Conv2d)
        and convolution.weight.shape[2:] == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
    )


def _is_transformed() -> bool:
    """Whether a tracer, a transform of torch.func or forward-mode differentiation looks at every operator."""
    # Dynamo, which cannot follow these questions, answers them itself: it compiles what it is given.
    return not torch.compiler.is_compiling() and (
        torch.jit.is_tracing() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def _is_eager(input: Tensor) -> bool:
    """Whether operators on `input` run at once, on ordinary tensors, in the dtype of their arguments."""
    return (
        not torch.compiler.is_compiling()
        and not _is_transformed()
        and type(input) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled(input.device.type)
    )


def is_affine(norm: nn.Module) -> bool:
    """Whether a normalization only multiplies by a scale and adds a shift, whose gradients are not needed."""
    return (
        is_plain(norm, nn.BatchNorm2d)
        and not norm.training
        and norm.running_mean is not None
        and norm.running_var is not None
        and not torch.is_grad_enabled()
        and not _is_transformed()
    )


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What an affine normalization multiplies by and adds: (C,) each, in float32 at least."""
    mean, variance, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if mean.dtype.itemsize < 4:
        mean, variance = mean.float(), variance.float()
    scale = torch.rsqrt(variance + norm.eps)
    if weight is not None:
        scale = scale * weight
    shift = mean * scale
    return scale, -shift if bias is None else bias - shift


def convolve_and_normalize(convolution: nn.Module, norm: nn.Module, hidden_state: Tensor) -> Tensor:
    """
    `norm(convolution(hidden_state))`; in inference on a CPU, in eager mode, in two ways that are faster there.

    An affine normalization goes into the weights where they are fewer than the results, unless a large scale could
    exceed the range of float16.
    """
    if not (
        hidden_state.device.type == "cpu"
        and not torch.is_grad_enabled()
        and _is_eager(hidden_state)
        and is_plain(convolution, nn.Conv2d)
        and convolution.padding_mode == "zeros"
        and isinstance(convolution.stride, tuple)  # users may set a number
        and hidden_state.dim() == 4
        and hidden_state.dtype == convolution.weight.dtype
    ):
        return norm(convolution(hidden_state))
    weight, bias = convolution.weight, convolution.bias
    results = hidden_state.numel() // (hidden_state.shape[1] * math.prod(convolution.stride))
    if is_affine(norm) and weight.dtype != torch.float16 and math.prod(weight.shape[1:]) < results:
        scale, shift = (t.to(weight.dtype) for t in scale_and_shift(norm))
        bias = shift if bias is None else shift + bias * scale
        return _convolve(hidden_state, weight * scale[:, None, None, None], bias, convolution)
    return norm(_convolve(hidden_state, weight, bias, convolution))


def _convolve(hidden_state: Tensor, weight: Tensor, bias: Tensor | None, convolution: nn.Conv2d) -> Tensor:
    """
    `convolution` with this weight and bias. With fewer pixels than channels, a 1x1 convolution runs as a matrix
    product, because oneDNN reorders the weights of a convolution at every call.
    """
    (stride_h, stride_w), channels = convolution.stride, hidden_state.shape[1]
    if (
        weight.shape[1:] == (channels, 1, 1)
        and convolution.padding == (0, 0)
        and hidden_state.numel() < channels * channels * stride_h * stride_w
        and hidden_state.is_contiguous(memory_format=torch.channels_last)
    ):
        pixels = hidden_state.permute(0, 2, 3, 1)[:, ::stride_h, ::stride_w]
        return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(
        hidden_state,
        weight,
        bias,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


def may_overwrite(hidden_state: Tensor) -> bool:
    """Whether a result may be overwritten where nobody else holds it: in inference, in eager mode."""
    return (
        not torch.is_grad_enabled()
        and _is_eager(hidden_state)
        # A mode may keep the result of every operator.
        and torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    )


def is_fresh(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether nobody else can hold what a convolution and its normalization return."""
    return is_plain(convolution, nn.Conv2d) and (is_plain(norm, nn.BatchNorm2d) or is_plain(norm, RedNetFoldedNorm))


class RedNetFoldedNorm(nn.Module):
    """
    Takes the place of a BatchNorm that `fuse()` folded into the operator before it: into the weights of a convolution,
    or as `scale` and `shift` (C,) into the pass of an involution.
    """

    def __init__(self, scale: Tensor | None = None, shift: Tensor | None = None):
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, hidden_state: Tensor) -> Tensor:
        if self.scale is None:
            return hidden_state
        return (hidden_state * self.scale[:, None, None] + self.shift[:, None, None]).to(hidden_state.dtype)


def normalize_involution(involution: nn.Module, norm: nn.BatchNorm2d, hidden_state: Tensor) -> Tensor:
    """Computes `norm(involution(hidden_state))` in less memory. Requires `can_normalize_involution`."""
    features = involution.reduce(involution.pooler(hidden_state))
    norm.num_batches_tracked.add_(1)
    return involution2d_batch_norm(
        hidden_state,
        features,
        involution.span.weight,
        involution.span.bias,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        involution.kernel_size,
        involution.stride,
        momentum=norm.momentum,
        eps=norm.eps,
    )


def can_normalize_involution(involution: nn.Module, norm: nn.Module, hidden_state: Tensor) -> bool:
    """Whether a plain `RedNetInvolution` and a module after it are in a step of training that may save memory."""
    span, height, width = involution.span, *hidden_state.shape[-2:]
    return (
        involution2d_batch_norm is not None
        and torch.is_grad_enabled()
        and hidden_state.device.type in ("cpu", "cuda")
        and _is_eager(hidden_state)
        and is_pointwise(span)
        and is_plain(norm, nn.BatchNorm2d)
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and all(t is not None for t in (*norm._parameters.values(), *norm._buffers.values()))
        and hidden_state.dtype == span.weight.dtype == norm.weight.dtype
        # BatchNorm refuses to normalize a single value.
        and len(hidden_state) * math.ceil(height / involution.stride) * math.ceil(width / involution.stride) > 1
    )
