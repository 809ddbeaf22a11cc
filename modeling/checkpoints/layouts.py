"""Which RedNet the weights of a checkpoint belong to, and the model with these weights.

The weights have the authors' names, as `rednet.checkpoints.read` returns them. Detectors are in
`rednet.checkpoints.detectors`, which needs torchvision.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from rednet.checkpoints.read import shorten
from rednet.configuration_rednet import RedNetConfig
from rednet.modeling_rednet import (
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
    RedNetPreTrainedModel,
)
from torch import Tensor, nn


# From our names of the weights to the authors' names: substitutions, applied one after the other. PaddleClas has the
# authors' names without prefixes.
RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^rednet\.", ""),
    (r"^embedder\.layers\.0\.(?=conv|norm)", "stem.0."),
    (r"^embedder\.layers\.1\.involution\.", "stem.1."),
    (r"^embedder\.layers\.1\.normalization\.", "stem.2."),
    (r"^embedder\.layers\.2\.", "stem.4."),
    (r"^encoder\.stages\.(\d+)\.layers\.", lambda match: f"layer{int(match[1]) + 1}."),
    *[(rf"\.layer\.{n}\.convolution\.", f".conv{n + 1}.") for n in (0, 2)],
    *[(rf"\.layer\.{n}\.normalization\.", f".bn{n + 1}.") for n in range(3)],
    (r"\.layer\.1\.involution\.", ".conv2."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.reduce\.", ".conv1."),
    (r"\.span\.", ".conv2.conv."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"^classifier\.", "fc."),
    # Semantic FPN (mmseg). The even modules of a level that is upsampled are its convolutions.
    (r"^neck\.laterals\.(\d+)\.", r"neck.lateral_convs.\1.conv."),
    (r"^neck\.outputs\.(\d+)\.(?=weight|bias)", r"neck.fpn_convs.\1.conv."),
    (r"^neck\.outputs\.", "neck.fpn_convs."),
    (
        r"^decode_head\.levels\.(\d+)\.(\d+)\.",
        lambda match: f"decode_head.scale_heads.{match[1]}.{2 * int(match[2])}.",
    ),
    (r"^decode_head\.classifier\.", "decode_head.conv_seg."),
]
# A weight of each model with neck and head, and its name in `rednet.detection`. The first that a checkpoint has counts.
SEMANTIC_FPN = "decode_head.scale_heads.0.0.conv.weight"
DETECTORS = {
    "roi_head.mask_head.conv_logits.weight": "maskrcnn",
    "roi_head.bbox_head.fc_cls.weight": "fasterrcnn",
    "bbox_head.retina_cls.weight": "retinanet",
}
# The prefixes of a backbone and of the classifier.
BACKBONE = re.compile(r"(stem|layer\d+|fc)\.")


def find_detector(weights: dict[str, Tensor]) -> str | None:
    """
    Returns the name in `rednet.detection` of the detector with these weights, or None if they are those of a backbone,
    a classifier or a Semantic FPN.

    Raises:
        ValueError: a neck or a head belongs to another model.
    """
    others = sorted(key for key in weights if not BACKBONE.match(key))
    if not others or SEMANTIC_FPN in weights:
        return None
    if detector := next((name for key, name in DETECTORS.items() if key in weights), None):
        return detector
    if not any(BACKBONE.match(key) for key in weights):
        return None  # `find_config` says what is missing
    heads = [key for key in others if not key.startswith("neck.")] or others
    raise ValueError(
        f"the checkpoint has {shorten(heads)}, but neither {SEMANTIC_FPN!r} (Semantic FPN) nor "
        f"{', '.join(map(repr, DETECTORS))} (Mask R-CNN, Faster R-CNN, RetinaNet): rednet does not have this model. "
        "--backbone_only converts its backbone"
    )


def backbone_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights without those of necks, heads and classifiers."""
    return {key: value for key, value in weights.items() if BACKBONE.match(key) and not key.startswith("fc.")}


def find_config(
    weights: dict[str, Tensor], config: RedNetConfig | None = None, labels: list[str] | None = None
) -> RedNetConfig:
    """
    Returns the configuration of the RedNet with these weights.

    Args:
        weights: as `read_checkpoint` returns them.
        config: gives the channels per group and the reduction ratio, which the shapes of the weights do not determine.
            By default they are 16 and 4, as in all published checkpoints. It also gives the names of the classes.
        labels: the names of the classes in the checkpoint.

    Returns:
        The configuration of a classifier, of a Semantic FPN, or, if the weights have neither head, of a `RedNetModel`.

    Raises:
        ValueError: a weight is missing, or its shape is that of no RedNet.
    """
    config = config or RedNetConfig()

    def shape(key: str) -> list[int]:
        if key not in weights:
            raise ValueError(f"the checkpoint is not that of a RedNet: {key!r} is missing")
        return list(weights[key].shape)

    def kernel_size(key: str, channels: int) -> int:
        # The weight has kernel_size ** 2 output channels for each group.
        group_channels = config.group_channels or channels
        size = math.isqrt(shape(key)[0] * group_channels // channels)
        if size % 2 == 0 or size**2 * channels != shape(key)[0] * group_channels:
            raise ValueError(
                f"the checkpoint is not that of a RedNet: {key!r} has shape {shape(key)}, expected the square of an odd "
                f"number times the number of groups as its first size ({channels} channels in groups of {group_channels})"
            )
        return size

    stages = sorted({int(match[1]) for key in weights if (match := re.match(r"layer(\d+)\.", key))})
    hidden_sizes = [shape(f"layer{n}.0.conv3.weight")[0] for n in stages] or shape("layer1.0.conv3.weight")
    embedding_size = shape("stem.4.conv.weight")[0]
    architecture: dict[str, Any] = {
        "num_channels": shape("stem.0.conv.weight")[1],
        "embedding_size": embedding_size,
        "hidden_sizes": hidden_sizes,
        "depths": [len({key.split(".")[1] for key in weights if key.startswith(f"layer{n}.")}) for n in stages],
        "kernel_size": kernel_size("layer1.0.conv2.conv2.conv.weight", hidden_sizes[0] // 4),
        "stem_kernel_size": kernel_size("stem.1.conv2.conv.weight", embedding_size // 2),
        "group_channels": config.group_channels,
        "reduction_ratio": config.reduction_ratio,
    }
    if SEMANTIC_FPN in weights:
        model, num_labels = "RedNetForSemanticSegmentation", shape("decode_head.conv_seg.weight")[0]
        if num_labels == 1:
            raise ValueError(
                "the checkpoint has 'decode_head.conv_seg.weight' with 1 output, whose sign tells two classes apart, "
                "expected one output for each class. --backbone_only converts the backbone of this model"
            )
        architecture |= {
            "neck_type": "involution" if "neck.fpn_convs.0.conv2.conv.weight" in weights else "convolution",
            "neck_hidden_size": shape("neck.lateral_convs.0.conv.weight")[0],
            "decoder_hidden_size": shape("decode_head.conv_seg.weight")[1],
        }
    elif "fc.weight" in weights:
        model, num_labels = "RedNetForImageClassification", shape("fc.weight")[0]
    else:
        return RedNetConfig(**architecture, architectures=["RedNetModel"])
    names = label_names(num_labels, config, labels)
    return RedNetConfig(
        **architecture,
        architectures=[model],
        id2label=dict(enumerate(names)),
        label2id={name: n for n, name in enumerate(names)},
    )


def label_names(num_labels: int, config: RedNetConfig | None, labels: list[str] | None) -> list[str]:
    """
    Returns the names in the configuration, or else those in the checkpoint, if there are as many; otherwise, 1000 classes
    are those of ImageNet.
    """
    if config and config.id2label and len(config.id2label) == num_labels and config.id2label[0] != "LABEL_0":
        return [config.id2label[n] for n in range(num_labels)]
    # OpenMMLab's names of ImageNet's classes are lists of synonyms.
    if num_labels == 1000 and (labels is None or labels[0].startswith("tench")):
        return imagenet_labels()
    return labels if labels and len(labels) == num_labels else [f"LABEL_{n}" for n in range(num_labels)]


def imagenet_labels() -> list[str]:
    """
    Returns the names of the 1000 classes of ImageNet-1k in their order, from torchvision.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    try:
        from torchvision.models import ResNet50_Weights
    except ImportError as error:
        raise ModuleNotFoundError("the names of the ImageNet classes need torchvision: install it") from error
    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def build_model(weights: dict[str, Tensor], config: RedNetConfig) -> RedNetPreTrainedModel:
    """
    Builds a model from a configuration and the weights of a checkpoint, in evaluation mode and in the weights' dtype.

    Raises:
        ValueError: as `load_weights`.
    """
    classes = (RedNetModel, RedNetForImageClassification, RedNetForSemanticSegmentation)
    model_class = next(one for one in classes if config.architectures == [one.__name__])
    with torch.device("meta"):
        model = model_class(config)
    try:
        load_weights(model, weights, {name: checkpoint_name(name) for name in model.state_dict()})
    except ValueError as error:
        if SEMANTIC_FPN not in weights:
            raise
        raise ValueError(f"{error} (Semantic FPN). --backbone_only converts the backbone of this model") from error
    return model.eval()


def load_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    sources: dict[str, str],
    add_background: dict[str, Callable[[Tensor], Tensor]] | None = None,
) -> None:
    """
    Loads the weights of a checkpoint into a model, whose weights may be on the meta device.

    Args:
        sources: the names in the checkpoint of all weights of the model.
        add_background: what to do with some weights, by their names in the model, before they are loaded. It may add
            rows, and nothing else, to the shape.

    Raises:
        ValueError: a weight is missing, unexpected, of the wrong shape, or not finite, or BatchNorm variances are
            negative or all zero. The message has the name of the weight in the checkpoint.
    """
    expected, changes = model.state_dict(), add_background or {}
    if missing := sorted(set(sources.values()) - set(weights)):
        raise ValueError(f"the checkpoint has no {shorten(missing)}")
    if unexpected := sorted(set(weights) - set(sources.values())):
        raise ValueError(f"the checkpoint has {shorten(unexpected)}, expected no such weights")
    loaded = {}
    for name, source in sources.items():
        loaded[name] = changes.get(name, Tensor.contiguous)(weights[source])
        added = len(loaded[name]) - len(weights[source]) if loaded[name].dim() else 0
        given, wanted = list(weights[source].shape), list(expected[name].shape)
        if list(loaded[name].shape) != wanted:
            wanted[:1] = [size - added for size in wanted[:1]]
            raise ValueError(f"the checkpoint has {source!r} with shape {given}, expected {wanted}")
        check_values(source, weights[source])
    model.load_state_dict(loaded, assign=True)


def check_values(name: str, weight: Tensor) -> None:
    """
    Raises:
        ValueError: a value is not finite, or `weight` is the variances of a BatchNorm and these are not positive. Single
            variances may be 0: that is the variance of a channel that is always 0.
    """
    if not weight.isfinite().all():
        count = int((~weight.isfinite()).sum())
        raise ValueError(f"the checkpoint has {name!r} with {count:,} of {weight.numel():,} values NaN or infinite")
    if name.endswith("running_var") and (weight.min() < 0 or weight.max() == 0):
        raise ValueError(
            f"the checkpoint has {name!r} with values from {weight.min():.3g} to {weight.max():.3g}, expected positive "
            "variances"
        )


def checkpoint_name(name: str) -> str:
    """Returns the authors' name of one of our weights."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
