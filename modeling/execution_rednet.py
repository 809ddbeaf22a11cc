"""How the modules of a RedNet run: shortcuts of eager execution, gradient checkpointing, and `fuse()`.

A shortcut returns the values of the modules that it replaces, in less time or memory: it computes from their parameters
instead of calling them. It applies only if no hook, adapter, parametrization, transform or tracer could observe the
difference. `benchmarks/shortcut_speed.py` measures what each shortcut gains.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.fusion import fuse_conv_bn_eval
from typing_extensions import Self

from .operator_rednet import involution2d_batch_norm, involution2d_fused, is_transformed


# The layers: each of these functions is what one `forward` in modeling_rednet.py returns


def conv_norm(convolution: nn.Module, norm: nn.Module, hidden_state: Tensor) -> Tensor:
    """
    Returns `norm(convolution(hidden_state))`, (B, C, H, W) to (B, C', H', W').

    Eager inference on a CPU has two shortcuts. An affine normalization is folded into the weights if these are fewer
    than the results, except in float16, whose range a large scale could exceed. A 1x1 convolution of few pixels runs as
    a matrix product.
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
    # Both for one output channel, the results of the whole batch.
    num_weights = math.prod(weight.shape[1:])
    num_results = hidden_state.numel() // (hidden_state.shape[1] * math.prod(convolution.stride))
    if is_affine(norm) and weight.dtype != torch.float16 and num_weights < num_results:
        scale, shift = (t.to(weight.dtype) for t in scale_and_shift(norm))
        bias = shift if bias is None else shift + bias * scale
        return _convolve(hidden_state, weight * scale[:, None, None, None], bias, convolution)
    return norm(_convolve(hidden_state, weight, bias, convolution))


def conv_norm_act(layer: nn.Module, hidden_state: Tensor) -> Tensor:
    """
    Returns `activation(normalization(convolution(hidden_state)))`, (B, C, H, W) to (B, C', H', W').

    In eager mode, ReLU overwrites the result of the normalization.
    """
    hidden_state = conv_norm(layer.convolution, layer.normalization, hidden_state)
    if (
        may_overwrite(hidden_state)
        and is_plain(layer.activation, nn.ReLU)
        and is_fresh(layer.convolution, layer.normalization)
    ):
        return F.relu_(hidden_state)
    return layer.activation(hidden_state)


def pooled_stem(
    layers: nn.Module, pooler: nn.Module, pixel_values: Tensor, last_layer_class: type[nn.Module]
) -> Tensor:
    """
    Returns `pooler(layers(pixel_values))`, (B, C, H, W) to (B, C', H', W').

    In eager training, max pooling comes before ReLU, which changes no value, if the last layer is unchanged and of
    exactly `last_layer_class`. Then the largest activation of the network is not kept for the backward pass.
    """
    last = layers[-1]
    if not (
        torch.is_grad_enabled()
        and _runs_at_once(pixel_values)
        and is_plain(layers, nn.Sequential)
        and is_plain(last, last_layer_class)
        and is_plain(last.activation, nn.ReLU)
        and is_plain(pooler, nn.MaxPool2d)
        and not pooler.return_indices
    ):
        return pooler(layers(pixel_values))
    hidden_state = pixel_values
    for layer in list(layers)[:-1]:
        hidden_state = layer(hidden_state)
    hidden_state = conv_norm(last.convolution, last.normalization, hidden_state)
    window = pooler.kernel_size, pooler.stride, pooler.padding, pooler.dilation, pooler.ceil_mode
    return _MaxPoolReLU.apply(hidden_state, *window)


class _MaxPoolReLU(torch.autograd.Function):
    """Max pooling and ReLU. PyTorch's max pooling keeps its input, of which the backward pass needs only the shape."""

    @staticmethod
    def forward(ctx, input, *window):
        output, indices = torch.ops.aten.max_pool2d_with_indices(input, *window)
        output = output.relu()
        ctx.save_for_backward(output, indices)
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if channels_last else torch.contiguous_format
        ctx.shape, ctx.window = input.shape, window
        return output

    @staticmethod
    def backward(ctx, grad):
        output, indices = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
        shaped = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.format)
        grad = torch.ops.aten.max_pool2d_with_indices_backward(grad, shaped, *ctx.window, indices)
        return grad, *[None] * len(ctx.window)


def involution_norm_act(layer: nn.Module, hidden_state: Tensor, involution_class: type[nn.Module]) -> Tensor:
    """
    Returns `activation(normalization(involution(hidden_state)))`, (B, C, H, W) to (B, C, H', W').

    An unchanged involution, of exactly `involution_class`, has two shortcuts. In inference, an affine normalization and
    ReLU are applied in the pass of the involution. In training, involution and BatchNorm are one node of autograd,
    which keeps less for the backward pass.
    """
    involution, norm, activation = layer.involution, layer.normalization, layer.activation
    if is_plain(involution, involution_class):
        if is_plain(norm, RedNetFoldedNorm):
            return _involution_scale_act(involution, norm.scale, norm.shift, activation, hidden_state)
        if is_affine(norm):
            return _involution_scale_act(involution, *scale_and_shift(norm), activation, hidden_state)
        if can_normalize_involution(involution, norm, hidden_state):
            hidden_state = normalize_involution(involution, norm, hidden_state)
            # Its backward pass does not need its result.
            overwrites = may_overwrite(hidden_state) and is_plain(activation, nn.ReLU)
            return F.relu_(hidden_state) if overwrites else activation(hidden_state)
    return activation(norm(involution(hidden_state)))


def add_and_activate(
    block: nn.Module,
    hidden_state: Tensor,
    residual: Tensor,
    last_layer_class: type[nn.Module],
    drop_path_class: type[nn.Module],
) -> Tensor:
    """
    Returns `activation(hidden_state + residual)`, all (B, C, H, W), where `hidden_state` is the result of `block.layer`
    and `block.drop_path`.

    In eager mode, the sum overwrites `hidden_state` if the last layer and `block.drop_path` are unchanged and of exactly
    these classes, and ReLU overwrites the sum.
    """
    if not may_overwrite(hidden_state):
        return block.activation(hidden_state + residual)
    last = block.layer[-1]
    if (
        is_plain(block.layer, nn.Sequential)
        and is_plain(last, last_layer_class)
        and is_plain(last.activation, nn.Identity)
        and is_fresh(last.convolution, last.normalization)
        and is_plain(block.drop_path, drop_path_class)
        and (hidden_state.shape, hidden_state.dtype) == (residual.shape, residual.dtype)
    ):
        hidden_state += residual
    else:
        hidden_state = hidden_state + residual
    return F.relu_(hidden_state) if is_plain(block.activation, nn.ReLU) else block.activation(hidden_state)


# The involution


def can_fuse_kernel(involution: nn.Module) -> bool:
    """Whether one operator can generate the kernels (by the last 1x1 convolution) and apply them."""
    return involution2d_fused is not None and is_pointwise(involution.span)


def fused_involution(
    involution: nn.Module,
    hidden_state: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """
    Returns `involution(hidden_state)`, if `can_fuse_kernel(involution)`, without storing the kernels. In the same pass
    multiplies by `scale` (C,), adds `shift` (C,) and applies ReLU.
    """
    return involution2d_fused(
        hidden_state,
        involution.reduce(involution.pooler(hidden_state)),
        involution.span.weight,
        involution.span.bias,
        involution.kernel_size,
        involution.stride,
        scale=scale,
        shift=shift,
        relu=relu,
    )


def _involution_scale_act(
    involution: nn.Module, scale: Tensor, shift: Tensor, activation: nn.Module, hidden_state: Tensor
) -> Tensor:
    """Returns `activation(involution(hidden_state) * scale + shift)`."""
    dtype = torch.promote_types(hidden_state.dtype, torch.float32)  # the dtype that an involution accumulates in
    scale, shift, relu = scale.to(dtype), shift.to(dtype), is_plain(activation, nn.ReLU)
    if can_fuse_kernel(involution):
        output = fused_involution(involution, hidden_state, scale, shift, relu)
        return output if relu else activation(output)
    output = involution(hidden_state)
    return activation((output * scale[:, None, None] + shift[:, None, None]).to(output.dtype))


def can_normalize_involution(involution: nn.Module, norm: nn.Module, hidden_state: Tensor) -> bool:
    """Whether `normalize_involution` can compute a plain `RedNetInvolution` and `norm`: a BatchNorm, in training."""
    span, height, width = involution.span, *hidden_state.shape[-2:]
    return (
        involution2d_batch_norm is not None
        and torch.is_grad_enabled()
        and hidden_state.device.type in ("cpu", "cuda")
        and _runs_at_once(hidden_state)
        and is_pointwise(span)
        and is_plain(norm, nn.BatchNorm2d)
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and all(t is not None for t in (*norm._parameters.values(), *norm._buffers.values()))
        and span.weight.dtype == norm.weight.dtype
        and hidden_state.dtype in _input_dtypes(span.weight)
        # BatchNorm refuses to normalize a single value.
        and len(hidden_state) * math.ceil(height / involution.stride) * math.ceil(width / involution.stride) > 1
    )


def _input_dtypes(weight: Tensor) -> tuple[torch.dtype, ...]:
    """The dtypes of inputs that a layer with this weight supports, outside and under autocast."""
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return weight.dtype, torch.get_autocast_dtype(device)
    return (weight.dtype,)


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


# When a shortcut applies


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` runs the `forward` of exactly the class `kind` on ordinary tensors, and nothing else."""
    if (
        type(module) is not kind
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or not _has_own_forward(module)
        or "_conv_forward" in module.__dict__  # nn.Conv2d.forward calls it
        or _has_any_global_hook()
    ):
        return False
    if torch.compiler.is_compiling():
        return True  # torch.export replaces parameters by tensors of its own types
    for parameter in module._parameters.values():
        # Quantized and distributed weights are tensors of other types, which may not support every operator.
        if parameter is not None and type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
            return False
    return True


def _has_own_forward(module: nn.Module) -> bool:
    """Whether `module.forward` is that of its class. `kernels.kernelize` sets it even if it keeps this `forward`."""
    forward = module.__dict__.get("forward")
    return forward is None or getattr(forward, "__func__", None) is type(module).forward


def is_pointwise(convolution: nn.Module) -> bool:
    """Whether a module is a plain 1x1 convolution of stride 1, which `involution2d_fused` can compute."""
    return (
        is_plain(convolution, nn.Conv2d)
        and convolution.weight.shape[2:] == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
    )


def is_affine(norm: nn.Module) -> bool:
    """Whether a normalization only multiplies by a scale and adds a shift, and needs no gradients."""
    return (
        is_plain(norm, nn.BatchNorm2d)
        and not norm.training
        and norm.running_mean is not None
        and norm.running_var is not None
        and not torch.is_grad_enabled()
        and not _is_transformed()
    )


def is_fresh(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether only the caller holds the result of a convolution and its normalization."""
    return is_plain(convolution, nn.Conv2d) and (is_plain(norm, nn.BatchNorm2d) or is_plain(norm, RedNetFoldedNorm))


def may_overwrite(hidden_state: Tensor) -> bool:
    """
    Whether the caller may overwrite a result that only it holds: in eager mode. In training this holds for the results
    of convolutions, normalizations and sums, which their backward passes do not need.
    """
    return (
        _runs_at_once(hidden_state)
        # A mode may keep the result of every operator.
        and torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    )


def _is_eager(input: Tensor) -> bool:
    """Whether operators on `input` run at once, on ordinary tensors, in the dtype of their arguments."""
    return _runs_at_once(input) and not torch.is_autocast_enabled(input.device.type)


def _runs_at_once(input: Tensor) -> bool:
    """Whether operators on `input` run at once, on ordinary tensors; under autocast perhaps in another dtype."""
    return not torch.compiler.is_compiling() and not _is_transformed() and type(input) in (Tensor, nn.Parameter)


def _is_transformed() -> bool:
    """`is_transformed()` outside of a compiler: Dynamo handles the transforms itself."""
    return not torch.compiler.is_compiling() and is_transformed()


# Values computed from the parameters of plain modules


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns scale and shift of an affine normalization: (C,) each, in float32 or float64."""
    mean, variance, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if mean.dtype.itemsize < 4:
        mean, variance = mean.float(), variance.float()
    scale = torch.rsqrt(variance + norm.eps)
    if weight is not None:
        scale = scale * weight
    shift = mean * scale
    return scale, -shift if bias is None else bias - shift


def _convolve(hidden_state: Tensor, weight: Tensor, bias: Tensor | None, convolution: nn.Conv2d) -> Tensor:
    """
    Runs `convolution` with this weight and bias. If the pixels are fewer than the channels, a 1x1 convolution runs as a
    matrix product, because oneDNN reorders the weights of a convolution at every call.
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


# Gradient checkpointing


class BatchNormCheckpointMixin:
    """
    For a `GradientCheckpointingLayer` with BatchNorm: only the first pass updates the running statistics, and not the
    pass that computes the activations again for the backward pass.
    """

    # The model that contains the layer sets its checkpointing function.
    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return partial(_checkpoint, self, self._checkpoint_function)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Callable) -> None:
        self._checkpoint_function = function

    @_gradient_checkpointing_func.deleter
    def _gradient_checkpointing_func(self) -> None:
        del self._checkpoint_function


def _checkpoint(layer: nn.Module, checkpoint: Callable, forward: Callable, *args: Any) -> Any:
    if torch.compiler.is_compiling():
        return checkpoint(forward, *args)  # the compiler recomputes activations without repeating updates
    passes = itertools.count()

    def run(*args: Any) -> Any:
        with nullcontext() if next(passes) == 0 else _frozen_statistics(layer):
            return forward(*args)

    return checkpoint(run, *args)


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalize by the batch, as in training, but update copies of their running statistics."""
    buffers = {
        norm: dict(norm._buffers) for norm in layer.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    }
    for norm, kept in buffers.items():
        norm._buffers.update({name: None if buffer is None else buffer.clone() for name, buffer in kept.items()})
    try:
        yield
    finally:
        for norm, kept in buffers.items():
            norm._buffers.update(kept)


# Fusion of a whole model


class FusionMixin:
    """Gives a `PreTrainedModel` the method `fuse`, and keeps a fused model from being trained or saved."""

    # Class of a layer with a BatchNorm `normalization` -> name of the convolution before it; None for an involution.
    _fusible_layers: dict[type[nn.Module], str | None]

    @torch.no_grad()
    def fuse(self) -> Self:
        """
        Folds every BatchNorm into the convolution or involution before it, in place, for inference. The model can
        neither be trained nor saved afterwards.

        Returns:
            The model itself.

        Raises:
            ValueError: the model is in training mode, or a layer has a hook, an adapter, or a BatchNorm without running
                statistics, so that its BatchNorm cannot be folded. The model is unchanged then.
        """
        if self.training:
            raise ValueError("fuse() is for inference, but the model is in training mode: call model.eval() first")
        layers = [
            (layer, name)
            for layer in self.modules()
            for layer_class, name in self._fusible_layers.items()
            if isinstance(layer, layer_class)
            and not isinstance(layer.normalization, (nn.Identity, RedNetFoldedNorm))  # folded by a user, or by fuse()
        ]
        for layer, name in layers:
            # An involution may be any module: folding changes only the BatchNorm after it.
            changed = [(layer.normalization, nn.BatchNorm2d)] + ([(getattr(layer, name), nn.Conv2d)] if name else [])
            for module, kind in changed:
                if not is_plain(module, kind):
                    raise ValueError(f"fuse() cannot fold {module}: expected a {kind.__name__} without hooks")
            if layer.normalization.running_mean is None or layer.normalization.running_var is None:
                raise ValueError(f"fuse() cannot fold {layer.normalization}: it has no running statistics")
        for layer, name in layers:
            if name:
                setattr(layer, name, fuse_conv_bn_eval(getattr(layer, name), layer.normalization))
                layer.normalization = RedNetFoldedNorm()
            else:
                layer.normalization = RedNetFoldedNorm(*scale_and_shift(layer.normalization))
        return self

    def train(self, mode: bool = True) -> Self:
        if mode and self._is_fused():
            raise ValueError("the model was fused for inference and has no BatchNorm to train: load it again")
        return super().train(mode)

    def save_pretrained(self, *args, **kwargs) -> None:
        self._check_not_fused()
        super().save_pretrained(*args, **kwargs)

    def push_to_hub(self, *args, **kwargs) -> str:
        self._check_not_fused()  # before a repository is created
        return super().push_to_hub(*args, **kwargs)

    def _is_fused(self) -> bool:
        return any(isinstance(module, RedNetFoldedNorm) for module in self.modules())

    def _check_not_fused(self) -> None:
        if self._is_fused():
            raise ValueError("the model was fused for inference and would not load again: save it before fuse()")


class RedNetFoldedNorm(nn.Module):
    """
    Replaces a BatchNorm that `fuse()` folded into the module before it: into the weights of a convolution (this module
    is the identity then), or as `scale` and `shift` (C,) into the pass of an involution.
    """

    def __init__(self, scale: Tensor | None = None, shift: Tensor | None = None):
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, hidden_state: Tensor) -> Tensor:
        if self.scale is None:
            return hidden_state
        return (hidden_state * self.scale[:, None, None] + self.shift[:, None, None]).to(hidden_state.dtype)
