"""Which RedNet the weights of a checkpoint belong to, and the model with these weights.

The weights have the authors' names, as `rednet.checkpoints.read` returns them.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from rednet.checkpoints.read import shorten
from rednet.configuration_rednet import RedNetConfig
from rednet.modeling_rednet import RedNetForImageClassification, RedNetModel
from torch import Tensor


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
]


def find_config(weights: dict[str, Tensor], config: RedNetConfig | None = None) -> RedNetConfig:
    """
    Returns the configuration of the RedNet with these weights.

    Args:
        weights: as `read_checkpoint` returns them.
        config: gives the channels per group and the reduction ratio, which the shapes of the weights do not determine.
            By default they are 16 and 4, as in all published checkpoints.

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
    if "fc.weight" not in weights:
        return RedNetConfig(**architecture, architectures=["RedNetModel"])
    labels = _label_names(shape("fc.weight")[0], config)
    return RedNetConfig(
        **architecture,
        architectures=["RedNetForImageClassification"],
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )


def _label_names(num_labels: int, config: RedNetConfig) -> list[str]:
    """Returns the names in the configuration if it has as many; otherwise, 1000 classes are those of ImageNet."""
    if config.id2label and len(config.id2label) == num_labels and config.id2label[0] != "LABEL_0":
        return [config.id2label[n] for n in range(num_labels)]
    return imagenet_labels() if num_labels == 1000 else [f"LABEL_{n}" for n in range(num_labels)]


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


def build_model(weights: dict[str, Tensor], config: RedNetConfig) -> RedNetForImageClassification | RedNetModel:
    """
    Builds a model from a configuration and the weights of a checkpoint, in evaluation mode and in the weights' dtype.

    Raises:
        ValueError: a weight is missing, unexpected, of the wrong shape, or not finite, or BatchNorm variances are
            negative or all zero. The message has the name of the weight in the checkpoint.
    """
    model_class = RedNetModel if config.architectures == ["RedNetModel"] else RedNetForImageClassification
    with torch.device("meta"):
        model = model_class(config)
    expected = model.state_dict()
    sources = {name: checkpoint_name(name) for name in expected}
    if missing := sorted(set(sources.values()) - set(weights)):
        raise ValueError(f"the checkpoint has no {shorten(missing)}")
    if unexpected := sorted(set(weights) - set(sources.values())):
        raise ValueError(f"the checkpoint has {shorten(unexpected)}, expected no such weights")
    for name, source in sources.items():
        given, wanted = list(weights[source].shape), list(expected[name].shape)
        if given != wanted:
            raise ValueError(f"the checkpoint has {source!r} with shape {given}, expected {wanted}")
        check_values(source, weights[source])
    model.load_state_dict({name: weights[source] for name, source in sources.items()}, assign=True)
    return model.eval()


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
