"""PyTorch RedNet for semantic segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import auto_docstring, can_return_tuple

from .configuration_rednet import RedNetConfig
from .modeling_rednet import RedNetConvLayer, RedNetInvolution, RedNetModel, RedNetPreTrainedModel


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


__all__ = ["RedNetForSemanticSegmentation"]
