"""Which RedNet the weights of a checkpoint belong to, and the model with these weights.

The weights have the authors' names, as `rednet.checkpoints.read` returns them. Detectors are in
`rednet.checkpoints.detectors`, which needs torchvision.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from rednet.checkpoints.read import shorten
from rednet.configuration_rednet import RedNetConfig
from rednet.loading import CLASSES
from rednet.modeling_rednet import RedNetPreTrainedModel
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
# A weight that only a Semantic FPN has, and one of each detector, with the name of the detector in `rednet.detection`. A
# Mask R-CNN also has the weight of a Faster R-CNN: the first weight that a checkpoint has decides.
SEMANTIC_FPN = "decode_head.scale_heads.0.0.conv.weight"
DETECTOR_WEIGHTS = {
    "roi_head.mask_head.conv_logits.weight": "maskrcnn",
    "roi_head.bbox_head.fc_cls.weight": "fasterrcnn",
    "bbox_head.retina_cls.weight": "retinanet",
}
# What the weights show of an architecture, and what they do not.
SHOWN = ["depths", "hidden_sizes", "num_channels", "embedding_size", "kernel_size", "stem_kernel_size"]
SHOWN += ["reduction_ratio", "operator_type", "kernel_generation"]
SHOWN_BY_SEMANTIC_FPN = ["neck_type", "neck_hidden_size", "decoder_hidden_size"]
NOT_SHOWN = ["group_channels", "hidden_act", "stem_stride", "drop_path_rate", "classifier_dropout_prob"]
NOT_SHOWN += ["semantic_loss_ignore_index"]
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
    if detector := next((name for key, name in DETECTOR_WEIGHTS.items() if key in weights), None):
        return detector
    if not any(BACKBONE.match(key) for key in weights):
        return None  # `find_config` says what is missing
    heads = [key for key in others if not key.startswith("neck.")] or others
    raise ValueError(
        f"the checkpoint has {shorten(heads)}, but neither {SEMANTIC_FPN!r} (Semantic FPN) nor "
        f"{', '.join(map(repr, DETECTOR_WEIGHTS))} (Mask R-CNN, Faster R-CNN, RetinaNet): rednet does not have this model. "
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
        config: gives what the weights do not show (`NOT_SHOWN`: channels per group, activation, stride of the stem and
            what is for the training), by default that of all published checkpoints, and the names of the classes. The
            rest is not read, see `check_config`.
        labels: the names of the classes in the checkpoint.

    Returns:
        The configuration of a classifier, of a Semantic FPN, or, if the weights have neither head, of a `RedNetModel`.

    Raises:
        ValueError: a weight is missing, or its shape is that of no RedNet with these channels per group.
    """
    config = config or RedNetConfig()
    stages = sorted({int(match[1]) for key in weights if (match := re.match(r"layer(\d+)\.", key))})
    hidden_sizes = [_shape(weights, f"layer{n}.0.conv3.weight")[0] for n in stages or [1]]
    embedding_size, width = _shape(weights, "stem.4.conv.weight")[0], hidden_sizes[0] // 4
    architecture: dict[str, Any] = {
        "num_channels": _shape(weights, "stem.0.conv.weight")[1],
        "embedding_size": embedding_size,
        "hidden_sizes": hidden_sizes,
        "depths": [len({key.split(".")[1] for key in weights if key.startswith(f"layer{n}.")}) for n in stages],
        "kernel_size": _kernel_size(weights, "layer1.0.conv2", width, config.group_channels),
        "stem_kernel_size": _kernel_size(weights, "stem.1", embedding_size // 2, config.group_channels),
        "reduction_ratio": _reduction_ratio(weights, "layer1.0.conv2", width),
        **{name: getattr(config, name) for name in NOT_SHOWN},
    }
    if SEMANTIC_FPN in weights:
        model, num_labels = "RedNetForSemanticSegmentation", _shape(weights, "decode_head.conv_seg.weight")[0]
        if num_labels == 1:
            raise ValueError(
                "the checkpoint has 'decode_head.conv_seg.weight' with 1 output, whose sign tells two classes apart, "
                "expected one output for each class. --backbone_only converts the backbone of this model"
            )
        architecture |= {
            "neck_type": "involution" if "neck.fpn_convs.0.conv2.conv.weight" in weights else "convolution",
            "neck_hidden_size": _shape(weights, "neck.lateral_convs.0.conv.weight")[0],
            "decoder_hidden_size": _shape(weights, "decode_head.conv_seg.weight")[1],
        }
    elif "fc.weight" in weights:
        model, num_labels = "RedNetForImageClassification", _shape(weights, "fc.weight")[0]
    else:
        model, num_labels = "RedNetModel", 0
    architecture["architectures"] = [model]
    if num_labels > 0:
        names = label_names(num_labels, config, labels)
        architecture |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    try:
        return RedNetConfig(**architecture)
    except StrictDataclassError as error:
        raise ValueError(f"the checkpoint is not that of a RedNet: {error}") from error


def _shape(weights: dict[str, Tensor], key: str) -> list[int]:
    if key not in weights:
        raise ValueError(f"the checkpoint is not that of a RedNet: {key!r} is missing")
    shape, dimensions = list(weights[key].shape), 2 if key == "fc.weight" else 4
    if len(shape) != dimensions:
        raise ValueError(
            f"the checkpoint is not that of a RedNet: {key!r} has shape {shape}, expected {dimensions} dimensions"
        )
    return shape


def _kernel_size(weights: dict[str, Tensor], involution: str, channels: int, group_channels: int | None) -> int:
    """Returns K of an involution: the last convolution of its kernel generation has K * K outputs for each group."""
    key, group_channels = f"{involution}.conv2.conv.weight", group_channels or channels
    outputs = _shape(weights, key)[0] * group_channels
    size = math.isqrt(outputs // channels) if channels > 0 else 0
    if size % 2 == 0 or size**2 * channels != outputs:
        raise ValueError(
            f"the checkpoint is not that of a RedNet: {key!r} has shape {_shape(weights, key)}, expected the square of an "
            f"odd number times the number of groups as its first size ({channels} channels in groups of {group_channels})"
        )
    return size


def _reduction_ratio(weights: dict[str, Tensor], involution: str, channels: int) -> int:
    key = f"{involution}.conv1.conv.weight"
    hidden_channels = _shape(weights, key)[0]
    if hidden_channels < 1 or channels % hidden_channels != 0:
        raise ValueError(
            f"the checkpoint is not that of a RedNet: {key!r} has shape {_shape(weights, key)}, expected a divisor of the "
            f"{channels} channels as its first size"
        )
    return channels // hidden_channels


def check_config(config: RedNetConfig, found: RedNetConfig) -> None:
    """
    Checks that a configuration which the user gave is that of a checkpoint.

    Args:
        found: as `find_config` returns it.

    Raises:
        ValueError: the weights show another architecture.
    """
    is_semantic_fpn = found.architectures == ["RedNetForSemanticSegmentation"]
    for name in SHOWN + (SHOWN_BY_SEMANTIC_FPN if is_semantic_fpn else []):
        if getattr(config, name) != getattr(found, name):
            raise ValueError(
                f"{name} is {getattr(config, name)!r} in the configuration, {getattr(found, name)!r} in the checkpoint"
            )


def label_names(num_labels: int, config: RedNetConfig, labels: list[str] | None) -> list[str]:
    """
    Returns the names of the classes: those in the configuration, or else those in the checkpoint, in both cases only if
    they are `num_labels`. Otherwise 1000 classes have the names of ImageNet, and other classes `LABEL_0`, `LABEL_1` ...

    Raises:
        ModuleNotFoundError: as `imagenet_labels`.
    """
    if config.id2label and len(config.id2label) == num_labels and config.id2label[0] != "LABEL_0":
        return [config.id2label[n] for n in range(num_labels)]
    # OpenMMLab names a class of ImageNet by all its synonyms, such as "tench, Tinca tinca".
    if num_labels == 1000 and (labels is None or labels[0].startswith("tench")):
        return imagenet_labels()
    return labels if labels and len(labels) == num_labels else [f"LABEL_{n}" for n in range(num_labels)]


def imagenet_labels() -> list[str]:
    """
    Returns the names of the 1000 classes of ImageNet-1k in their order, from timm: all synonyms of each class, such as
    "tench, Tinca tinca", as in ImageNet itself and in the models of Transformers.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ModuleNotFoundError("the names of the ImageNet classes need timm: install it") from error
    return list(ImageNetInfo().label_descriptions())


def build_model(weights: dict[str, Tensor], config: RedNetConfig) -> RedNetPreTrainedModel:
    """
    Builds a model from a configuration and the weights of a checkpoint, in evaluation mode and in the weights' dtype.

    Raises:
        ValueError: as `load_weights`.
    """
    with torch.device("meta"):
        model = CLASSES[config.architectures[0]](config)
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
    Checks the values of one weight.

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
