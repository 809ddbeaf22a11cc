"""PyTorch RedNet model."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

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
from transformers.utils import auto_docstring, can_return_tuple

from .configuration_rednet import RedNetConfig
from .execution_rednet import (
    RedNetFoldedNorm,
    can_normalize_involution,
    convolve_and_normalize,
    is_affine,
    is_fresh,
    is_plain,
    is_pointwise,
    may_overwrite,
    normalize_involution,
    scale_and_shift,
)
from .operator_rednet import involution2d, involution2d_fused


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
        self.activation = ACT2FN[activation] if activation is not None else nn.Identity()

    def forward(self, hidden_state: Tensor) -> Tensor:
        hidden_state = convolve_and_normalize(self.convolution, self.normalization, hidden_state)
        if (
            may_overwrite(hidden_state)
            and is_plain(self.activation, nn.ReLU)
            and is_fresh(self.convolution, self.normalization)
        ):
            return F.relu_(hidden_state)
        return self.activation(hidden_state)


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

    def generate_kernel(self, hidden_state: Tensor) -> Tensor:
        """The kernel of every output pixel: (B, C, H, W) to (B, G, K, K, H', W'), for G groups of channels."""
        kernel = self.span(self.reduce(self.pooler(hidden_state)))
        # Not `unflatten`, of which `torch.jit.trace` keeps the size of the image as a constant.
        batch, height, width = kernel.shape[0], kernel.shape[2], kernel.shape[3]
        return kernel.view(batch, self.groups, self.kernel_size, self.kernel_size, height, width)

    def forward(
        self, hidden_state: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """`scale` and `shift` (C,), and a ReLU, are applied to the output in the same pass."""
        if involution2d_fused is not None and is_pointwise(self.span):
            return involution2d_fused(
                hidden_state,
                self.reduce(self.pooler(hidden_state)),
                self.span.weight,
                self.span.bias,
                self.kernel_size,
                self.stride,
                scale=scale,
                shift=shift,
                relu=relu,
            )
        kernel = self.generate_kernel(hidden_state)
        output = involution2d(hidden_state, kernel, self.stride, self.kernel_size // 2)
        if scale is not None:
            output = (output * scale[:, None, None] + shift[:, None, None]).to(output.dtype)
        return output.relu() if relu else output


class RedNetInvolutionLayer(nn.Module):
    """Involution, BatchNorm and activation."""

    def __init__(self, config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.involution = RedNetInvolution(config, channels, kernel_size, stride)
        self.normalization = nn.BatchNorm2d(channels)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_state: Tensor) -> Tensor:
        involution, norm = self.involution, self.normalization
        if is_plain(involution, RedNetInvolution):
            if is_plain(norm, RedNetFoldedNorm):
                return self._forward_in_one_pass(hidden_state, norm.scale, norm.shift)
            if is_affine(norm):
                return self._forward_in_one_pass(hidden_state, *scale_and_shift(norm))
            if can_normalize_involution(involution, norm, hidden_state):
                return self.activation(normalize_involution(involution, norm, hidden_state))
        return self.activation(norm(involution(hidden_state)))

    def _forward_in_one_pass(self, hidden_state: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden_state.dtype, torch.float32)  # that an involution sums in
        relu = is_plain(self.activation, nn.ReLU)
        hidden_state = self.involution(hidden_state, scale.to(dtype), shift.to(dtype), relu)
        return hidden_state if relu else self.activation(hidden_state)


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
        return convolve_and_normalize(self.convolution, self.normalization, hidden_state)


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
        self.activation = ACT2FN[config.hidden_act]

    # Whatever model this layer is part of sets the function that checkpoints it.
    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return partial(_checkpoint_layer, self, self._checkpoint)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, checkpoint: Callable) -> None:
        self._checkpoint = checkpoint

    @_gradient_checkpointing_func.deleter
    def _gradient_checkpointing_func(self) -> None:
        del self._checkpoint

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = self.shortcut(hidden_state)
        hidden_state = self.layer(hidden_state)
        if not may_overwrite(hidden_state):
            return self.activation(hidden_state + residual)
        last = self.layer[-1]
        if (
            is_plain(self.layer, nn.Sequential)
            and is_plain(last, RedNetConvLayer)
            and is_plain(last.activation, nn.Identity)
            and is_fresh(last.convolution, last.normalization)
            and (hidden_state.shape, hidden_state.dtype) == (residual.shape, residual.dtype)
        ):
            hidden_state += residual
        else:
            hidden_state = hidden_state + residual
        return F.relu_(hidden_state) if is_plain(self.activation, nn.ReLU) else self.activation(hidden_state)


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

    def get_input_embeddings(self) -> nn.Module:
        """The stem's first convolution, where adapters and quantizers look for what takes the input."""
        return getattr(self, self.base_model_prefix, self).embedder.layers[0].convolution

    @torch.no_grad()
    def fuse(self) -> "RedNetPreTrainedModel":
        """
        Folds every BatchNorm into the convolution or involution before it, in place, for inference. The model can
        neither be trained nor saved afterwards.

        Raises:
            ValueError: the model is in training mode, or a layer computes something else than its class does: it has
                a hook, an adapter, or a BatchNorm without running statistics. Nothing is changed then.
        """
        if self.training:
            raise ValueError("fuse() is for inference, but the model is in training mode: call model.eval() first")
        layers = [
            layer
            for layer in self.modules()
            if isinstance(layer, (RedNetConvLayer, RedNetShortCut, RedNetInvolutionLayer))
            and not isinstance(layer.normalization, (nn.Identity, RedNetFoldedNorm))  # a user's, or ours
        ]
        for layer in layers:
            involution = isinstance(layer, RedNetInvolutionLayer)
            before = (layer.involution, RedNetInvolution) if involution else (layer.convolution, nn.Conv2d)
            for module, kind in (before, (layer.normalization, nn.BatchNorm2d)):
                if not is_plain(module, kind):
                    raise ValueError(f"fuse() cannot fold {module}: expected a {kind.__name__} without hooks")
            if layer.normalization.running_mean is None or layer.normalization.running_var is None:
                raise ValueError(f"fuse() cannot fold {layer.normalization}: it has no running statistics")
        for layer in layers:
            norm = layer.normalization
            if isinstance(layer, RedNetInvolutionLayer):
                layer.normalization = RedNetFoldedNorm(*scale_and_shift(norm))
            else:
                layer.convolution = fuse_conv_bn_eval(layer.convolution, norm)
                layer.normalization = RedNetFoldedNorm()
        return self

    @torch.no_grad()
    def involution_kernels(self, pixel_values: Tensor) -> dict[str, dict[str, Tensor]]:
        """
        Runs the model once, in evaluation mode, and returns the kernel that every involution generates.

        Args:
            pixel_values: (B, num_channels, H, W), as the image processor returns them.

        Returns:
            For each part of the model (`stem`, `stage1`, ..., `neck`), a dictionary from the names of its involutions
            in `named_modules()` to their kernels (B, G, K, K, H', W'): G groups of channels, K x K taps, H' x W' the
            size of the involution's output.

        Raises:
            ValueError: the model is in training mode, or has no involutions.
        """
        if self.training:  # the BatchNorms would see the batch twice
            raise ValueError("involution_kernels() is for inference: call model.eval() first")
        base = getattr(self, self.base_model_prefix, self)
        parts = dict(zip(self.config.stage_names, [base.embedder, *base.encoder.stages]))
        if hasattr(self, "neck"):
            parts["neck"] = self.neck
        names = {module: name for name, module in self.named_modules()}
        kernels, hooks = {part: {} for part in parts}, []

        def record(involution: RedNetInvolution, inputs: tuple[Tensor], part: str) -> None:
            kernels[part][names[involution]] = involution.generate_kernel(inputs[0])

        for part, root in parts.items():
            for module in root.modules():
                if isinstance(module, RedNetInvolution):
                    hooks.append(module.register_forward_pre_hook(partial(record, part=part)))
        if not hooks:
            raise ValueError(
                f"{type(self).__name__} has no involutions: operator_type is {self.config.operator_type!r}"
            )
        try:
            self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        return kernels

    def _is_fused(self) -> bool:
        return any(isinstance(module, RedNetFoldedNorm) for module in self.modules())

    def train(self, mode: bool = True) -> "RedNetPreTrainedModel":
        if mode and self._is_fused():
            raise ValueError("the model was fused for inference and has no BatchNorm to train: load it again")
        return super().train(mode)

    def save_pretrained(self, *args, **kwargs) -> None:
        self._check_not_fused()
        super().save_pretrained(*args, **kwargs)

    def push_to_hub(self, *args, **kwargs) -> str:
        self._check_not_fused()  # before a repository is created
        return super().push_to_hub(*args, **kwargs)

    def _check_not_fused(self) -> None:
        if self._is_fused():
            raise ValueError("the model was fused for inference and would not load again: save it before fuse()")


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
        for output in self.neck.outputs:
            if isinstance(output, RedNetInvolution) and module is output.span:
                # The identity and a little noise: no normalization follows here, and an involution mixes no channels.
                # It learns better from there, and so do those of detection.py.
                taps = output.kernel_size**2
                init.normal_(module.weight, std=(module.in_channels * taps) ** -0.5)
                identity = torch.zeros_like(module.bias).view(output.groups, taps)
                identity[:, taps // 2] = 1
                init.copy_(module.bias, identity.flatten())

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
