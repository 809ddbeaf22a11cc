"""PyTorch RedNet model."""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithNoAttention,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import auto_docstring, can_return_tuple, logging

from .configuration_rednet import RedNetConfig


logger = logging.get_logger(__name__)

try:
    from involution import involution2d, involution2d_fused, operators
except ImportError as error:  # as remote code, where the package with the compiled operator is not installed
    involution2d_fused, _missing = None, str(error)
    if _source := os.environ.get("REDNET_KERNEL"):
        try:
            from kernels import get_kernel, get_local_kernel

            # By default a CUDA build of torch would take no kernel for the CPU, GPU or not. Who names a repository
            # trusts its code; without this `kernels` asks that the Hub vouches for its owner.
            _backend = None if torch.cuda.is_available() else "cpu"
            _kernel = (
                get_local_kernel(Path(_source), backend=_backend)
                if os.path.isdir(_source)
                else get_kernel(_source, version=1, backend=_backend, trust_remote_code=[_source])
            )
            operators, involution2d = _kernel.operators, _kernel.involution2d
            involution2d_fused = _kernel.involution2d_fused
        except Exception as error:  # whatever goes wrong, plain PyTorch can take over
            _missing = f"REDNET_KERNEL={_source} cannot be loaded: {error!r}"

if involution2d_fused is None:

    def involution2d(input: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
        """Applies kernels (B, G, K, K, H', W') to an input (B, C, H, W) with "same" padding, in plain PyTorch."""
        if not torch.compiler.is_compiling():  # where a warning would break the graph
            logger.warning_once(
                f"RedNet's involutions run in plain PyTorch, slower and with far more memory ({_missing}). For the "
                "compiled operator install the package `rednet` from its repository (`pip install .` there), or "
                "`pip install kernels` and set REDNET_KERNEL to a repository (user/involution) or folder with it."
            )
        batch, groups, kernel_size, _, height, width = kernel.shape
        columns = F.unfold(input, kernel_size, padding=kernel_size // 2, stride=stride)
        columns = columns.view(batch, groups, -1, kernel_size, kernel_size, height, width)
        return (kernel.unsqueeze(2) * columns).sum((3, 4)).flatten(1, 2)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what its class does with its own parameters, and nothing is hooked to its call.

    Adapters, quantisation, parametrisations and the hooks that bring offloaded weights change one of these. Then the
    module has to be called, not computed from its parameters.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and "forward" not in vars(module) and not any(hooks)


def _activation(name: str) -> nn.Module:
    activation = ACT2FN[name]
    if isinstance(activation, nn.ReLU):
        activation.inplace = True  # its input is always a fresh result which nothing else needs
    return activation


def _is_affine(norm: nn.Module) -> bool:
    """Whether a normalization, here and now, is a scale and a shift whose gradients nobody asks for."""
    return _is_plain(norm, nn.BatchNorm2d) and not norm.training and not torch.is_grad_enabled()


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation mode: (C,) each, in float32 at least."""
    dtype = torch.promote_types(norm.weight.dtype, torch.float32)
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def _few_pixels(weight: Tensor, bias: Tensor | None) -> int:
    """
    Up to how many pixels a matrix product beats a 1x1 convolution on a CPU: for those oneDNN reorders the weights at
    every call. In float32 the product writes the bias first (measured with torch 2.15 on AVX-512 and AMX).
    """
    if weight.dtype == torch.bfloat16:
        return 16384
    return 4096 if bias is None else 1024


def _convolve(hidden_state: Tensor, weight: Tensor, bias: Tensor | None, convolution: nn.Conv2d) -> Tensor:
    """`convolution` with this weight and bias; a 1x1 convolution of few pixels as a matrix product."""
    (stride_h, stride_w), pixels = convolution.stride, hidden_state.numel() // hidden_state.shape[1]
    if (
        convolution.kernel_size == (1, 1)
        and pixels <= _few_pixels(weight, bias) * stride_h * stride_w
        and hidden_state.is_contiguous(memory_format=torch.channels_last)
    ):
        pixels = hidden_state.permute(0, 2, 3, 1)[:, ::stride_h, ::stride_w].contiguous()
        return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(hidden_state, weight, bias, convolution.stride, convolution.padding)


def _convolve_and_normalize(convolution: nn.Module, norm: nn.Module, hidden_state: Tensor) -> Tensor:
    """
    Convolution and BatchNorm; in eager mode on a CPU in the ways that are faster there.

    In inference the scale of the normalization goes to whichever are fewer, weights or results: a pass over memory
    costs as much as many multiplications.
    """
    if (
        hidden_state.device.type != "cpu"
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or not _is_plain(convolution, nn.Conv2d)
    ):
        return norm(convolution(hidden_state))
    weight, dtype = convolution.weight, hidden_state.dtype
    results = hidden_state.numel() // (hidden_state.shape[1] * math.prod(convolution.stride))
    if _is_affine(norm) and math.prod(weight.shape[1:]) < results:
        scale, shift = _scale_and_shift(norm)
        weight = weight * scale.to(dtype)[:, None, None, None]
        return _convolve(hidden_state, weight, shift.to(dtype), convolution)
    return norm(_convolve(hidden_state, weight, convolution.bias, convolution))


class RedNetConvLayer(nn.Module):
    """Convolution, BatchNorm and activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        activation: str | None = "relu",
    ):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = _activation(activation) if activation is not None else nn.Identity()

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.activation(_convolve_and_normalize(self.convolution, self.normalization, hidden_state))


class RedNetInvolution(nn.Module):
    """
    Generates a kernel for every output pixel from that pixel (paper, equation 6), or as `config.kernel_generation`
    says, and applies it (equation 4).

    The result has the size of a convolution of the same stride with "same" padding, ceil(H / stride).
    """

    def __init__(self, config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = channels // (config.group_channels or channels)
        # ceil_mode: the last window of an odd size averages the pixels that exist. Where the stride divides the size,
        # as it does in the authors' models, it changes nothing.
        self.pooler = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        if config.kernel_generation == "linear":
            hidden_channels, self.reduce = channels, nn.Identity()
        else:
            hidden_channels = channels // config.reduction_ratio
            size = 3 if config.kernel_generation == "neighborhood" else 1
            self.reduce = RedNetConvLayer(channels, hidden_channels, kernel_size=size, activation=config.hidden_act)
        self.span = nn.Conv2d(hidden_channels, kernel_size**2 * self.groups, kernel_size=1)

    def forward(
        self, hidden_state: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        features = self.reduce(self.pooler(hidden_state))
        if involution2d_fused is not None and _is_plain(self.span, nn.Conv2d):
            return involution2d_fused(
                hidden_state,
                features,
                self.span.weight,
                self.span.bias,
                self.kernel_size,
                self.stride,
                scale=scale,
                shift=shift,
                relu=relu,
            )
        kernel = self.span(features).unflatten(1, (self.groups, self.kernel_size, self.kernel_size))
        output = involution2d(hidden_state, kernel, stride=self.stride)
        if scale is not None:
            output = (output * scale[:, None, None] + shift[:, None, None]).to(output.dtype)
        return output.relu_() if relu else output


class _NormalizedInvolution(torch.autograd.Function):
    """
    Involution with a generated kernel, and BatchNorm in training mode. Neither the kernel, three times the size of the
    activation, nor what is normalized is kept for the backward pass: both are made again there. That is why RedNet
    trains in less memory than ResNet.
    """

    @staticmethod
    def forward(
        ctx, hidden_state, features, weight, bias, gamma, beta, running_mean, running_var, momentum, eps, size, stride
    ):
        output = involution2d_fused(hidden_state, features, weight, bias, size, stride)
        output, mean, inverse_std = torch.native_batch_norm(
            output, gamma, beta, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(hidden_state, features, weight, bias, gamma, mean, inverse_std)
        ctx.eps, ctx.size, ctx.stride = eps, size, stride
        return output

    @staticmethod
    def backward(ctx, grad):
        hidden_state, features, weight, bias, gamma, mean, inverse_std = ctx.saved_tensors
        groups, size, aten = weight.shape[0] // ctx.size**2, [ctx.size] * 2, torch.ops.aten
        kernel = F.conv2d(features, weight, bias).unflatten(1, (groups, *size))
        window = [ctx.stride] * 2, [ctx.size // 2] * 2, [1, 1]
        output = involution2d(hidden_state, kernel, stride=ctx.stride)
        grad, grad_gamma, grad_beta = aten.native_batch_norm_backward(
            grad, output, gamma, None, None, mean, inverse_std, True, ctx.eps, [True] * 3
        )
        grad_input = operators.involution2d_input_grad(grad, kernel, hidden_state.shape[2:], *window)
        grad_kernel = operators.involution2d_kernel_grad(grad, hidden_state, groups, size, *window).flatten(1, 3)
        convolution = (weight.shape[:1], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3)
        grads = aten.convolution_backward(grad_kernel, features, weight, *convolution)
        return grad_input, *grads, grad_gamma, grad_beta, None, None, None, None, None, None


class RedNetInvolutionLayer(nn.Module):
    """Involution, BatchNorm and activation; in inference without gradients in one pass of the operator."""

    def __init__(self, config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.involution = RedNetInvolution(config, channels, kernel_size, stride)
        self.normalization = nn.BatchNorm2d(channels)
        self.activation = _activation(config.hidden_act)

    def forward(self, hidden_state: Tensor) -> Tensor:
        if _is_affine(self.normalization) and _is_plain(self.involution, RedNetInvolution):
            scale, shift = _scale_and_shift(self.normalization)
            relu = _is_plain(self.activation, nn.ReLU)
            hidden_state = self.involution(hidden_state, scale=scale, shift=shift, relu=relu)
            return hidden_state if relu else self.activation(hidden_state)
        if self._saves_memory(hidden_state):
            return self.activation(self._train(hidden_state))
        return self.activation(self.normalization(self.involution(hidden_state)))

    def _saves_memory(self, hidden_state: Tensor) -> bool:
        norm = self.normalization
        return (
            involution2d_fused is not None
            and hidden_state.device.type in ("cpu", "cuda")
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()  # which decides by itself what to make again
            and not torch.is_autocast_enabled(hidden_state.device.type)
            and _is_plain(self.involution, RedNetInvolution)
            and _is_plain(self.involution.span, nn.Conv2d)
            and _is_plain(norm, nn.BatchNorm2d)
            and norm.training
            and norm.momentum is not None
        )

    def _train(self, hidden_state: Tensor) -> Tensor:
        involution, norm = self.involution, self.normalization
        norm.num_batches_tracked.add_(1)
        return _NormalizedInvolution.apply(
            hidden_state,
            involution.reduce(involution.pooler(hidden_state)),
            involution.span.weight,
            involution.span.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.momentum,
            norm.eps,
            involution.kernel_size,
            involution.stride,
        )


def _spatial_layer(config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """What RedNet and ResNet differ in."""
    if config.operator_type == "convolution":
        return RedNetConvLayer(channels, channels, 3, stride, config.hidden_act)
    return RedNetInvolutionLayer(config, channels, kernel_size, stride)


class RedNetEmbeddings(nn.Module):
    """The stem: convolution, involution, convolution, and a max pooling where the stem's stride is 4."""

    def __init__(self, config: RedNetConfig):
        super().__init__()
        self.num_channels = config.num_channels
        width = config.embedding_size // 2
        self.layers = nn.Sequential(
            RedNetConvLayer(
                config.num_channels, width, stride=min(config.stem_stride, 2), activation=config.hidden_act
            ),
            _spatial_layer(config, width, config.stem_kernel_size),
            RedNetConvLayer(width, config.embedding_size, activation=config.hidden_act),
        )
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if config.stem_stride == 4 else nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values have {pixel_values.shape[1]} channels, expected {self.num_channels} as set in the "
                "configuration (num_channels)"
            )
        return self.pooler(self.layers(pixel_values))


class RedNetShortCut(nn.Module):
    """Projects the residual to the size and the number of channels of the bottleneck's output."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_state: Tensor) -> Tensor:
        return _convolve_and_normalize(self.convolution, self.normalization, hidden_state)


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalise by the batch, as in training, but update copies of their running statistics."""
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


def _checkpoint_layer(layer: nn.Module, checkpoint: Callable, function: Callable, *args):
    """Gradient checkpointing of a layer with BatchNorm: the running statistics see the batch in the first pass only."""
    if torch.compiler.is_compiling():
        # There the recomputation is a matter of the partitioner, which repeats no updates.
        return checkpoint(function, *args)
    passes = itertools.count()

    def run(*args):
        with nullcontext() if next(passes) == 0 else _frozen_statistics(layer):
            return function(*args)

    return checkpoint(run, *args)


class RedNetBottleNeckLayer(GradientCheckpointingLayer):
    """1x1 convolution to a quarter of the channels, involution (with the stride), 1x1 convolution back, residual."""

    def __init__(self, config: RedNetConfig, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        width = out_channels // 4
        self.shortcut = (
            RedNetShortCut(in_channels, out_channels, stride)
            if in_channels != out_channels or stride != 1
            else nn.Identity()
        )
        self.layer = nn.Sequential(
            RedNetConvLayer(in_channels, width, kernel_size=1, activation=config.hidden_act),
            _spatial_layer(config, width, config.kernel_size, stride),
            RedNetConvLayer(width, out_channels, kernel_size=1, activation=None),
        )
        # Every bottleneck starts as the identity (or its shortcut). Marked on the BatchNorm itself, because `_init_weights`
        # is not called for modules without parameters of their own in remote code.
        self.layer[-1].normalization.zero_init = True
        self.activation = _activation(config.hidden_act)

    # Whatever model this layer is part of sets the function that checkpoints it.
    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return partial(_checkpoint_layer, self, self._checkpoint)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint: Callable) -> None:
        self._checkpoint = checkpoint

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = self.shortcut(hidden_state)
        hidden_state = self.layer(hidden_state)
        hidden_state += residual
        return self.activation(hidden_state)


class RedNetStage(nn.Module):
    """Bottlenecks of one width; the first one takes the stride."""

    def __init__(self, config: RedNetConfig, in_channels: int, out_channels: int, stride: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(
            RedNetBottleNeckLayer(
                config, in_channels if n == 0 else out_channels, out_channels, stride=stride if n == 0 else 1
            )
            for n in range(depth)
        )

    def forward(self, hidden_state: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_state = layer(hidden_state)
        return hidden_state


class RedNetEncoder(nn.Module):
    """The stages. The first keeps the size, every other one halves it."""

    def __init__(self, config: RedNetConfig):
        super().__init__()
        in_sizes = [config.embedding_size] + config.hidden_sizes[:-1]
        self.stages = nn.ModuleList(
            RedNetStage(config, in_size, out_size, stride=1 if n == 0 else 2, depth=depth)
            for n, (in_size, out_size, depth) in enumerate(zip(in_sizes, config.hidden_sizes, config.depths))
        )

    def forward(self, hidden_state: Tensor, output_hidden_states: bool = False) -> BaseModelOutputWithNoAttention:
        hidden_states = (hidden_state,)
        for stage in self.stages:
            hidden_state = stage(hidden_state)
            hidden_states += (hidden_state,)
        return BaseModelOutputWithNoAttention(
            last_hidden_state=hidden_state, hidden_states=hidden_states if output_hidden_states else None
        )


@auto_docstring
class RedNetPreTrainedModel(PreTrainedModel):
    config: RedNetConfig
    config_class = RedNetConfig
    base_model_prefix = "rednet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["RedNetEmbeddings", "RedNetBottleNeckLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.constant_(module.weight, 0 if getattr(module, "zero_init", False) else 1)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def fuse(self) -> "RedNetPreTrainedModel":
        """
        Folds every BatchNorm that follows a convolution into that convolution, in place, for inference. (The others
        follow an involution, which applies them in its own pass.) The model can neither be trained nor saved then.

        Raises:
            ValueError: in training mode, or where an adapter or a hook has changed what a layer computes.
        """
        if self.training:
            raise ValueError("fuse() is for inference, but the model is in training mode: call model.eval() first")
        layers = [module for module in self.modules() if isinstance(module, (RedNetConvLayer, RedNetShortCut))]
        layers = [layer for layer in layers if not isinstance(layer.normalization, nn.Identity)]
        for layer in layers:
            for module, kind in ((layer.convolution, nn.Conv2d), (layer.normalization, nn.BatchNorm2d)):
                if not _is_plain(module, kind):
                    raise ValueError(f"fuse() cannot fold {module}: expected a {kind.__name__} without hooks")
        for layer in layers:
            layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.normalization)
            layer.normalization = nn.Identity()
        return self

    def _is_fused(self) -> bool:
        return any(
            isinstance(module, RedNetConvLayer) and isinstance(module.normalization, nn.Identity)
            for module in self.modules()
        )

    def train(self, mode: bool = True) -> "RedNetPreTrainedModel":
        if mode and self._is_fused():
            raise ValueError("the model was fused for inference and has no BatchNorm to train: load it again")
        return super().train(mode)

    def save_pretrained(self, *args, **kwargs) -> None:
        if self._is_fused():
            raise ValueError("the model was fused for inference and would not load again: save it before fuse()")
        super().save_pretrained(*args, **kwargs)


@auto_docstring
class RedNetModel(RedNetPreTrainedModel):
    def __init__(self, config: RedNetConfig):
        super().__init__(config)
        self.embedder = RedNetEmbeddings(config)
        self.encoder = RedNetEncoder(config)
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.encoder(self.embedder(pixel_values), output_hidden_states=output_hidden_states)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.pooler(outputs.last_hidden_state).flatten(1),
            hidden_states=outputs.hidden_states,
        )


@auto_docstring(
    custom_intro="""
    RedNet model with an image classification head on top (a linear layer on top of the pooled features), e.g. for
    ImageNet.
    """
)
class RedNetForImageClassification(RedNetPreTrainedModel):
    # The loss is a mean over the images of a batch: Trainer has to average it over accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: RedNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.rednet = RedNetModel(config)
        self.classifier = (
            nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels > 0 else nn.Identity()
        )
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: Tensor,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Labels for computing the image classification/regression loss. Indices should be in `[0, ...,
            config.num_labels - 1]`. If `config.num_labels > 1` a classification loss is computed (cross-entropy).
        """
        outputs = self.rednet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class RedNetFeaturePyramid(nn.Module):
    """
    FPN (Lin et al., CVPR 2017): 1x1 convolutions bring every stage to one width, from the coarsest down each is added
    to the next finer one, and every sum goes through an output layer. That is a 3x3 convolution, or the involution
    that takes its place in the paper (section 4), without normalization or activation in either case.
    """

    def __init__(self, config: RedNetConfig):
        super().__init__()
        width, convolution = config.neck_hidden_size, config.neck_type == "convolution"
        self.laterals = nn.ModuleList(nn.Conv2d(size, width, kernel_size=1) for size in config.hidden_sizes)
        self.outputs = nn.ModuleList(
            nn.Conv2d(width, width, kernel_size=3, padding=1)
            if convolution
            else RedNetInvolution(config, width, config.kernel_size)
            for _ in config.hidden_sizes
        )

    def forward(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        hidden_states = [lateral(feature) for lateral, feature in zip(self.laterals, features)]
        for n in range(len(hidden_states) - 1, 0, -1):
            finer = hidden_states[n - 1]
            hidden_states[n - 1] = finer + F.interpolate(hidden_states[n], size=finer.shape[2:])
        return [output(hidden_state) for output, hidden_state in zip(self.outputs, hidden_states)]


class RedNetSegmentationHead(nn.Module):
    """
    Semantic FPN (Kirillov et al., CVPR 2019): every level goes through 3x3 convolutions, each followed by bilinear
    upsampling to the next finer level, up to the size of the first; what arrives there is summed and classified.
    """

    def __init__(self, config: RedNetConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.levels = nn.ModuleList(
            nn.ModuleList(
                RedNetConvLayer(config.neck_hidden_size if n == 0 else width, width, activation=config.hidden_act)
                for n in range(max(1, level))
            )
            for level in range(len(config.hidden_sizes))
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        # To the sizes of the finer levels rather than by a factor of 2: a stage rounds odd sizes up.
        sizes = [feature.shape[2:] for feature in features]
        total = 0
        for level, (layers, hidden_state) in enumerate(zip(self.levels, features)):
            for n, layer in enumerate(layers, start=1):
                hidden_state = layer(hidden_state)
                if level > 0:
                    hidden_state = F.interpolate(hidden_state, size=sizes[level - n], mode="bilinear")
            total = total + hidden_state
        return self.classifier(self.dropout(total))


@auto_docstring(
    custom_intro="""
    RedNet model with a semantic segmentation head on top, Semantic FPN as in the paper (section 4), e.g. for
    Cityscapes. RedNet-50 for its 19 classes, with `stem_kernel_size=7`, has the paper's 18.5 million parameters, and
    16.4 million with `neck_type="involution"`.
    """
)
class RedNetForSemanticSegmentation(RedNetPreTrainedModel):
    # The loss is a mean over the pixels of a batch: Trainer has to average it over accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = [
        *RedNetPreTrainedModel._no_split_modules,
        "RedNetFeaturePyramid",
        "RedNetSegmentationHead",
    ]

    def __init__(self, config: RedNetConfig):
        super().__init__(config)
        self.rednet = RedNetModel(config)
        self.neck = RedNetFeaturePyramid(config)
        self.decode_head = RedNetSegmentationHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.decode_head.classifier:  # every class starts about equally likely
            init.normal_(module.weight, std=0.01)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: Tensor,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            The class of every pixel, for computing the loss: cross-entropy of the logits, upsampled to the labels, over
            the pixels whose label is not `config.semantic_loss_ignore_index`.

        Examples:

        ```python
        >>> import torch
        >>> from rednet import RedNetConfig, RedNetForSemanticSegmentation

        >>> model = RedNetForSemanticSegmentation(RedNetConfig(num_labels=19, neck_type="involution"))
        >>> list(model(torch.zeros(1, 3, 64, 128)).logits.shape)
        [1, 19, 16, 32]
        ```"""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.rednet(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        logits = self.decode_head(self.neck(hidden_states[1:]))
        loss = None
        if labels is not None:
            upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
            loss = F.cross_entropy(upsampled, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=hidden_states if output_hidden_states else None
        )


@auto_docstring(
    custom_intro="""
    RedNet backbone, to be used with frameworks like DETR and MaskFormer.
    """
)
class RedNetBackbone(BackboneMixin, RedNetPreTrainedModel):
    has_attentions = False

    def __init__(self, config: RedNetConfig):
        super().__init__(config)
        self.num_features = [config.embedding_size] + config.hidden_sizes
        self.embedder = RedNetEmbeddings(config)
        self.encoder = RedNetEncoder(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        r"""
        Examples:

        ```python
        >>> import torch
        >>> from rednet import RedNetBackbone, RedNetConfig

        >>> backbone = RedNetBackbone(RedNetConfig(out_features=["stage2", "stage4"]))
        >>> outputs = backbone(torch.zeros(1, 3, 224, 224))
        >>> [list(feature_map.shape) for feature_map in outputs.feature_maps]
        [[1, 512, 28, 28], [1, 2048, 7, 7]]
        ```"""
        hidden_states = self.encoder(self.embedder(pixel_values), output_hidden_states=True).hidden_states
        feature_maps = tuple(hidden_states[self.stage_names.index(name)] for name in self.out_features)
        return BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states)


__all__ = [
    "RedNetBackbone",
    "RedNetForImageClassification",
    "RedNetForSemanticSegmentation",
    "RedNetModel",
    "RedNetPreTrainedModel",
]
