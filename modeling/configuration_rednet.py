"""RedNet model configuration."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers.utils.versions import require_version


# The imports below need these releases. No installer checks them for remote code.
require_version("transformers>=5.17", "Install it with `pip install --upgrade transformers` to load a RedNet.")
require_version("torch>=2.11", "Install it with `pip install --upgrade torch` to load a RedNet.")

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.backbone_utils import BackboneConfigMixin  # noqa: E402
from transformers.configuration_utils import PreTrainedConfig  # noqa: E402


# The files that are saved with every checkpoint, and the classes in them that the Auto classes load.
REMOTE_CODE = ("configuration_rednet.py", "execution_rednet.py", "modeling_rednet.py", "operator_rednet.py")
AUTO_MAP = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModel": "modeling_rednet.RedNetModel",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_rednet.RedNetForSemanticSegmentation",
    "AutoBackbone": "modeling_rednet.RedNetBackbone",
}


@strict
class RedNetConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    The architecture of a RedNet: a ResNet of bottlenecks whose 3x3 convolutions are involutions (Li et al., CVPR 2021,
    arXiv 2103.06255, section 4.1). The defaults are RedNet-50.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            The number of channels of the images.
        embedding_size (`int`, *optional*, defaults to 64):
            The number of output channels of the stem, even. The first two layers of the stem have half of it.
        hidden_sizes (`list[int]`, *optional*, defaults to `[256, 512, 1024, 2048]`):
            The number of output channels of each stage, four times the channels of its involutions.
        depths (`list[int]`, *optional*, defaults to `[3, 4, 6, 3]`):
            The number of bottlenecks in each stage.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            The activation of the stem, the bottlenecks, the kernel generation and the segmentation head.
        kernel_size (`int`, *optional*, defaults to 7):
            The kernel size of the involutions in the stages, odd.
        stem_kernel_size (`int`, *optional*, defaults to 3):
            The kernel size of the involution in the stem, odd. It is 7 in the paper's detection and segmentation models.
        group_channels (`int`, *optional*, defaults to 16):
            The number of channels that share one kernel. With None, all channels of an involution share it.
        reduction_ratio (`int`, *optional*, defaults to 4):
            The number of channels of an involution divided by the number of hidden channels in its kernel generation.
        kernel_generation (`"bottleneck"`, `"linear"` or `"neighborhood"`, *optional*, defaults to `"bottleneck"`):
            How the kernel of a pixel is generated: from that pixel by two linear maps, with BatchNorm and activation
            between them (paper, equation 6); from that pixel by one linear map; or from the pixel and its neighbors by
            two maps, the first of which is a 3x3 convolution.
        operator_type (`"involution"` or `"convolution"`, *optional*, defaults to `"involution"`):
            The spatial operator in the stem and in the bottlenecks. With `"convolution"` (3x3) the model is the ResNet
            to compare with.
        stem_stride (`int`, *optional*, defaults to 4):
            The stride of the stem: 4 as in the paper (a strided convolution and max pooling), or 2 (only the
            convolution) or 1 (neither) for small images.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            The probability of stochastic depth in the last bottleneck: in training, its layers are left out for a part of
            the images. The probability grows linearly from 0 in the first bottleneck.
        neck_type (`"convolution"` or `"involution"`, *optional*, defaults to `"convolution"`):
            In semantic segmentation, the output layer of every level of the feature pyramid: a 3x3 convolution, or an
            involution of size `kernel_size` as in the paper.
        neck_hidden_size (`int`, *optional*, defaults to 256):
            The number of channels of the feature pyramid.
        decoder_hidden_size (`int`, *optional*, defaults to 128):
            The number of channels of the segmentation head.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.1):
            The probability to drop a channel before the classifier of the segmentation head, in training.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            The label of pixels that the loss of semantic segmentation ignores.
        out_features (`list[str]`, *optional*):
            The features that the backbone returns: any of `"stem"`, `"stage1"`, `"stage2"` ... in this order. The
            default is the last stage, if `out_indices` is not given either.
        out_indices (`list[int]`, *optional*):
            The same by number: 0 for the stem, 1 for the first stage.

    Example:

    ```python
    >>> from rednet import RedNetConfig, RedNetModel

    >>> configuration = RedNetConfig()  # RedNet-50
    >>> model = RedNetModel(configuration)  # with random weights
    >>> configuration = model.config
    ```
    """

    model_type = "rednet"

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    hidden_act: str = "relu"
    kernel_size: int = 7
    stem_kernel_size: int = 3
    group_channels: int | None = 16
    reduction_ratio: int = 4
    kernel_generation: Literal["bottleneck", "linear", "neighborhood"] = "bottleneck"
    operator_type: Literal["involution", "convolution"] = "involution"
    stem_stride: int = 4
    drop_path_rate: float | int = 0.0
    neck_type: Literal["convolution", "involution"] = "convolution"
    neck_hidden_size: int = 256
    decoder_hidden_size: int = 128
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255

    if TYPE_CHECKING:  # also accepts arguments that are no fields: out_features, num_labels, id2label ...

        def __init__(self, **kwargs: Any) -> None: ...

    def __post_init__(self, **kwargs):
        self.hidden_sizes = list(self.hidden_sizes)
        self.depths = list(self.depths)
        self.stage_names = ["stem"] + [f"stage{idx}" for idx in range(1, len(self.depths) + 1)]
        out_indices, count = kwargs.pop("out_indices", None), len(self.stage_names)
        if not all(-count <= index < count for index in out_indices or ()):
            raise ValueError(f"out_indices={out_indices} must be from {-count} to {count - 1} (0 is the stem)")
        self.set_output_features_output_indices(out_indices=out_indices, out_features=kwargs.pop("out_features", None))
        if (kwargs.get("num_labels") or 0) < 0:
            raise ValueError(f"num_labels={kwargs['num_labels']} must be 0 (no classifier) or positive")
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """
        Saves the configuration and the code of the model, which `trust_remote_code=True` loads if `rednet` is not
        installed. Every way to save or push a model calls this method. (Transformers alone would write only the entry of
        the saved class into `auto_map`.)

        A configuration that was loaded as remote code without a model has no code of the models. If that code is not in
        `save_directory` either, `auto_map` has no entries for the models.

        Args:
            save_directory: the folder to write `config.json` and the code to.

        Raises:
            ValueError: `push_to_hub` is True, which would push the configuration without the code.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True would push no code, expected False: use config.push_to_hub(repository)")
        sources = [Path(__file__).with_name(name) for name in REMOTE_CODE]
        present = {path.stem for path in sources if path.exists() or Path(save_directory, path.name).exists()}
        self.auto_map = {name: code for name, code in AUTO_MAP.items() if code.split(".")[0] in present}
        super().save_pretrained(save_directory, **kwargs)
        for source in sources:
            copy = Path(save_directory, source.name)
            if source.exists() and not (copy.exists() and copy.samefile(source)):
                shutil.copyfile(source, copy)

    def validate_channels(self):
        """Every layer has at least one channel, and halves and quarters of them are whole numbers."""
        for name in ("num_channels", "embedding_size", "neck_hidden_size", "decoder_hidden_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be positive")
        if self.embedding_size % 2 != 0:
            raise ValueError(
                f"embedding_size={self.embedding_size} must be even: the involution of the stem has half of it"
            )
        if any(size < 4 or size % 4 != 0 for size in self.hidden_sizes):
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes} must be positive multiples of 4, the expansion of a bottleneck"
            )

    def validate_hidden_act(self):
        """Transformers provides the activation."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown, expected one of {', '.join(ACT2FN)}")

    def validate_classifier_dropout_prob(self):
        """It is a probability."""
        if not 0 <= self.classifier_dropout_prob <= 1:
            raise ValueError(f"classifier_dropout_prob={self.classifier_dropout_prob} must be from 0 to 1")

    def validate_drop_path_rate(self):
        """It is a probability, and some images keep the layers."""
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be from 0 to below 1")

    def validate_stages(self):
        """Every stage has a depth and a size."""
        if len(self.depths) == 0 or len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths={self.depths} and hidden_sizes={self.hidden_sizes} must have one entry for each stage"
            )
        if min(self.depths) < 1:
            raise ValueError(f"depths={self.depths} must be positive: every stage has at least one bottleneck")

    def validate_kernel_sizes(self):
        """Kernels are centered on their pixel."""
        for name in ("kernel_size", "stem_kernel_size"):
            if (value := getattr(self, name)) < 1 or value % 2 == 0:
                raise ValueError(f"{name}={value} must be odd and positive: a kernel is centered on its pixel")

    def validate_group_channels(self):
        """The number of channels of every involution is divisible by these two."""
        widths = []
        if self.operator_type == "involution":
            widths += [self.embedding_size // 2] + [size // 4 for size in self.hidden_sizes]
        if self.neck_type == "involution":
            widths.append(self.neck_hidden_size)
        for name in ("group_channels", "reduction_ratio"):
            value = getattr(self, name)
            if value is None:
                continue
            if value < 1 or any(width % value != 0 for width in widths):
                raise ValueError(
                    f"{name}={value} must be positive and divide the channels of every involution, which are {widths} "
                    "(half of embedding_size in the stem, a quarter of hidden_sizes in the stages, neck_hidden_size in "
                    "an involution neck)"
                )

    def validate_stem_stride(self):
        """The stem has two layers with a stride of 1 or 2."""
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride={self.stem_stride} must be 1, 2 or 4")


__all__ = ["RedNetConfig"]
