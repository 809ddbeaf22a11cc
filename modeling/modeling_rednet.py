"""The RedNet architecture (Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR
2021, arXiv 2103.06255): a ResNet whose 3x3 convolutions are involutions.

From the smallest block to the models. Shapes are (batch B, channels C, height H, width W); a stride s turns H into
H' = ceil(H / s), and W likewise. Execution shortcuts, which change no values, are in execution_rednet.py.
"""

from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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
    BatchNormCheckpointMixin,
    FusionMixin,
    add_and_activate,
    can_fuse_kernel,
    conv_norm,
    conv_norm_act,
    fused_involution,
    involution_norm_act,
    is_pointwise,
    pooled_stem,
)
from .operator_rednet import involution2d


class RedNetConvLayer(nn.Module):
    """Convolution, BatchNorm and activation: (B, in_channels, H, W) to (B, out_channels, H', W')."""

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
        return conv_norm_act(self, hidden_state)


class RedNetInvolution(nn.Module):
    """
    Generates one kernel for each output pixel (paper, equation 6, or another `config.kernel_generation`) and applies it
    to all channels of a group (equation 4): (B, C, H, W) to (B, C, H', W').

    `kernels.kernelize` and Transformers' `use_kernels` replace `forward` by that of a layer from the Kernel Hub.
    """

    # `use_kernel_forward_from_hub` of Transformers would set this name too, but only if it supports the installed release
    # of `kernels`.
    kernel_layer_name = "RedNetInvolution"

    def __init__(self, config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = channels // (config.group_channels or channels)
        # ceil_mode: the last window of an odd size averages the pixels that exist. It has no effect if the stride
        # divides the size, as in the authors' models.
        self.pooler = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        if config.kernel_generation == "linear":
            hidden_channels, self.reduce = channels, nn.Identity()
        else:
            hidden_channels = channels // config.reduction_ratio
            size = 3 if config.kernel_generation == "neighborhood" else 1
            self.reduce = RedNetConvLayer(channels, hidden_channels, kernel_size=size, activation=config.hidden_act)
        self.span = nn.Conv2d(hidden_channels, kernel_size**2 * self.groups, kernel_size=1)

    def generate_kernel(self, hidden_state: Tensor) -> Tensor:
        """
        Generates the kernels: (B, C, H, W) to (B, G, K, K, H', W') for G groups of channels and K x K taps. The kernel
        [b, g, :, :, y, x] makes the output pixel (y, x) in every channel of group g.
        """
        kernel = self.span(self.reduce(self.pooler(hidden_state)))
        # Not `unflatten`: `torch.jit.trace` would record the size of the image as a constant.
        batch, height, width = kernel.shape[0], kernel.shape[2], kernel.shape[3]
        return kernel.view(batch, self.groups, self.kernel_size, self.kernel_size, height, width)

    def has_pointwise_span(self) -> bool:
        """
        Whether `span` is an unchanged 1x1 convolution, which one operator can run together with the involution. A layer
        from the Kernel Hub calls it.
        """
        return is_pointwise(self.span)

    def forward(self, hidden_state: Tensor) -> Tensor:
        if can_fuse_kernel(self):  # the same values in one pass, without storing the kernels
            return fused_involution(self, hidden_state)
        return involution2d(hidden_state, self.generate_kernel(hidden_state), self.stride, self.kernel_size // 2)


@torch.no_grad()
def init_identity(span: nn.Conv2d, groups: int) -> None:
    """
    Initializes the last convolution of an involution so that its kernels are the identity and a little noise.

    For involutions without a normalization after them, as in necks and detection heads. The initialization of a
    convolution would triple their input. Small noise alone trains many times more slowly: an involution mixes no
    channels, so nothing else preserves its input.
    """
    taps = span.out_channels // groups
    init.normal_(span.weight, std=(span.in_channels * taps) ** -0.5)
    identity = torch.zeros_like(span.bias).view(groups, taps)
    identity[:, taps // 2] = 1
    init.copy_(span.bias, identity.flatten())


class RedNetInvolutionLayer(nn.Module):
    """Involution, BatchNorm and activation: (B, C, H, W) to (B, C, H', W')."""

    def __init__(self, config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.involution = RedNetInvolution(config, channels, kernel_size, stride)
        self.normalization = nn.BatchNorm2d(channels)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_state: Tensor) -> Tensor:
        return involution_norm_act(self, hidden_state, involution_class=RedNetInvolution)


def _spatial_layer(config: RedNetConfig, channels: int, kernel_size: int, stride: int = 1) -> nn.Module:
    """The layer in which RedNet (involution) and ResNet (3x3 convolution) differ."""
    if config.operator_type == "convolution":
        return RedNetConvLayer(channels, channels, 3, stride, config.hidden_act)
    return RedNetInvolutionLayer(config, channels, kernel_size, stride)


class RedNetEmbeddings(nn.Module):
    """
    The stem: convolution, involution, convolution, and max pooling if `stem_stride` is 4. (B, num_channels, H, W) to
    (B, embedding_size, H', W').
    """

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
                f"pixel_values have {pixel_values.shape[1]} channels, expected {self.num_channels} (num_channels in the "
                "configuration)"
            )
        return pooled_stem(self.layers, self.pooler, pixel_values, last_layer_class=RedNetConvLayer)


class RedNetShortCut(nn.Module):
    """1x1 convolution and BatchNorm of the residual: (B, in_channels, H, W) to (B, out_channels, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_state: Tensor) -> Tensor:
        return conv_norm(self.convolution, self.normalization, hidden_state)


class RedNetDropPath(nn.Module):
    """
    Stochastic depth (Huang et al., ECCV 2016) of (B, C, H, W): in training, sets each image to zero with probability
    `rate` and divides the others by 1 - rate, which keeps the expectation. The identity in evaluation or at rate 0.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_state: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return hidden_state
        keep = 1 - self.rate
        return hidden_state * hidden_state.new_empty(len(hidden_state), 1, 1, 1).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class RedNetBottleNeckLayer(BatchNormCheckpointMixin, GradientCheckpointingLayer):
    """
    1x1 convolution to out_channels / 4, involution (with the stride), 1x1 convolution to out_channels, stochastic depth,
    and the residual: (B, in_channels, H, W) to (B, out_channels, H', W').
    """

    def __init__(
        self, config: RedNetConfig, in_channels: int, out_channels: int, stride: int = 1, drop_path_rate: float = 0.0
    ):
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
        # Every bottleneck starts as the identity (or its shortcut). The mark is on the BatchNorm, because in remote code
        # `_init_weights` is not called for modules without parameters of their own.
        self.layer[-1].normalization.zero_init = True
        self.drop_path = RedNetDropPath(drop_path_rate)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = self.shortcut(hidden_state)
        hidden_state = self.drop_path(self.layer(hidden_state))
        return add_and_activate(
            self, hidden_state, residual, last_layer_class=RedNetConvLayer, drop_path_class=RedNetDropPath
        )


class RedNetStage(nn.Module):
    """
    Bottlenecks, each with its rate of stochastic depth; the first one has the stride: (B, in_channels, H, W) to
    (B, out_channels, H', W').
    """

    def __init__(
        self, config: RedNetConfig, in_channels: int, out_channels: int, stride: int, drop_path_rates: list[float]
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            RedNetBottleNeckLayer(
                config, in_channels if n == 0 else out_channels, out_channels, stride if n == 0 else 1, rate
            )
            for n, rate in enumerate(drop_path_rates)
        )

    def forward(self, hidden_state: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_state = layer(hidden_state)
        return hidden_state


class RedNetEncoder(nn.Module):
    """
    The stages: (B, embedding_size, H, W) to (B, hidden_sizes[-1], H', W'). The first stage keeps the size, every other
    one halves it. `hidden_states` are the input of the first stage and the result of every stage.
    """

    def __init__(self, config: RedNetConfig):
        super().__init__()
        in_sizes = [config.embedding_size] + config.hidden_sizes[:-1]
        last = max(sum(config.depths) - 1, 1)
        rates = iter([config.drop_path_rate * (n / last) for n in range(sum(config.depths))])
        self.stages = nn.ModuleList(
            RedNetStage(config, in_size, out_size, 1 if n == 0 else 2, list(islice(rates, depth)))
            for n, (in_size, out_size, depth) in enumerate(zip(in_sizes, config.hidden_sizes, config.depths))
        )

    def forward(self, hidden_state: Tensor, output_hidden_states: bool = False) -> BaseModelOutputWithNoAttention:
        hidden_states = (hidden_state,) if output_hidden_states else None
        for stage in self.stages:
            hidden_state = stage(hidden_state)
            if output_hidden_states:
                hidden_states += (hidden_state,)
        return BaseModelOutputWithNoAttention(last_hidden_state=hidden_state, hidden_states=hidden_states)


@auto_docstring
class RedNetPreTrainedModel(FusionMixin, PreTrainedModel):
    config: RedNetConfig
    base_model_prefix = "rednet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["RedNetEmbeddings", "RedNetBottleNeckLayer"]
    _fusible_layers = {
        RedNetConvLayer: "convolution",
        RedNetShortCut: "convolution",
        RedNetInvolutionLayer: None,
    }

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
        """Returns the first convolution of the stem, which adapters and quantizers treat as the input layer."""
        return getattr(self, self.base_model_prefix, self).embedder.layers[0].convolution

    @torch.no_grad()
    def involution_kernels(self, pixel_values: Tensor) -> dict[str, dict[str, Tensor]]:
        """
        Runs the model once and returns the kernels that its involutions generate, see `RedNetInvolution`.

        Args:
            pixel_values: (B, num_channels, H, W), the output of the image processor.

        Returns:
            For each part of the model (`stem`, `stage1`, ..., and `neck` in segmentation), a dictionary from the names
            of its involutions in `named_modules()` to their kernels (B, G, K, K, H', W').

        Raises:
            ValueError: the model is in training mode, or has no involutions.
        """
        if self.training:  # the statistics of BatchNorm would be updated twice
            raise ValueError(
                "involution_kernels() is for inference, but the model is in training mode: call model.eval() first"
            )
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
                f"involution_kernels() needs a model with involutions, but operator_type is {self.config.operator_type!r}"
            )
        try:
            self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        return kernels


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
    RedNet with a linear layer on the pooled features, for image classification.
    """
)
class RedNetForImageClassification(RedNetPreTrainedModel):
    # The loss is a mean over the images of a batch, so Trainer must average it over accumulation steps.
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
            The class of every image, from 0 to `config.num_labels - 1`, for computing the loss: cross-entropy, or the
            loss of another `config.problem_type`.
        """
        outputs = self.rednet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class RedNetFeaturePyramid(nn.Module):
    """
    FPN (Lin et al., CVPR 2017): 1x1 convolutions bring every stage to one width, each level is upsampled and added to
    the next finer one, and every sum goes through an output layer: a 3x3 convolution, or an involution as in the paper
    (section 4), without normalization or activation.

    One feature (B, hidden_sizes[n], H_n, W_n) for each stage n to one (B, neck_hidden_size, H_n, W_n).
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
    upsampling to the next finer level, up to the size of the first. The sum of all levels is classified.

    One feature (B, neck_hidden_size, H_n, W_n) for each stage n to logits (B, num_labels, H_0, W_0).
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
        # Upsampling by a factor of 2 would not match the finer level if a stage has rounded an odd size up.
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
    RedNet with Semantic FPN (section 4 of the paper), for semantic segmentation. With `stem_kernel_size=7` and 19
    classes, RedNet-50 has 18.5 million parameters, as in the paper, and 16.4 million with `neck_type="involution"`.
    """
)
class RedNetForSemanticSegmentation(RedNetPreTrainedModel):
    # The loss is a mean over the pixels of a batch, so Trainer must average it over accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = [
        *RedNetPreTrainedModel._no_split_modules,
        "RedNetFeaturePyramid",
        "RedNetSegmentationHead",
    ]

    def __init__(self, config: RedNetConfig):
        super().__init__(config)
        if config.num_labels < 1:
            raise ValueError(f"num_labels={config.num_labels} must be at least 1 for semantic segmentation")
        self.rednet = RedNetModel(config)
        self.neck = RedNetFeaturePyramid(config)
        self.decode_head = RedNetSegmentationHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.decode_head.classifier:  # all classes start with about equal probability
            init.normal_(module.weight, std=0.01)
        for output in self.neck.outputs:
            if isinstance(output, RedNetInvolution) and module is output.span:
                init_identity(output.span, output.groups)

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
            The class of every pixel, for computing the loss: the cross-entropy of the logits, upsampled to the size of
            the labels, over the pixels whose label is not `config.semantic_loss_ignore_index`. Two classes or more are
            needed.

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
            if self.config.num_labels < 2:  # the cross-entropy of one class is always 0
                raise ValueError(f"num_labels={self.config.num_labels} must be at least 2 to compute a loss")
            upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
            loss = F.cross_entropy(upsampled, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=hidden_states if output_hidden_states else None
        )


@auto_docstring(
    custom_intro="""
    RedNet that returns the feature maps of chosen stages, for the detection and segmentation models of Transformers.
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
