"""torchvision's detectors with a RedNet backbone (paper, section 4). This module needs torchvision; the rest of `rednet`
does not.
"""

import copy
import json
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from rednet.configuration_rednet import RedNetConfig
from rednet.hub import replacing
from rednet.loading import read_object
from rednet.mmdetection import Style, coarser_levels, rcnn_layers, retinanet_layers
from rednet.modeling_rednet import RedNetBackbone, init_identity
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file

from involution import Involution2d


Layer = Literal["convolution", "involution"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
REPRESENTATION_SIZE = 1024  # channels of torchvision's box head
RPN_ANCHORS = 3  # for each position and size in the region proposal network: aspect ratios 1:2, 1:1 and 2:1


class RedNetFPN(nn.Module):
    """RedNet with a feature pyramid (Lin et al., CVPR 2017), a backbone for torchvision's detectors.

    The involution neck of the paper has a 7x7 involution instead of the 3x3 output convolution of every level. Neither
    is followed by normalization or activation.

    Args:
        backbone: the RedNet. The pyramid is built on the stages in its `out_features`.
        neck: the output layer of every level, `"convolution"` or `"involution"`.
        extra_blocks: makes the coarser levels above the pyramid.
        channels: the number of channels of every level.
        trainable_layers: how many of stem and stages are trained, counted from the last stage. If any is frozen, all
            BatchNorm layers of the backbone keep their statistics, because detectors train on few images at a time.

    Shape:
        images (B, num_channels, H, W) -> {"0": (B, channels, H / 4, W / 4), "1": (B, channels, H / 8, W / 8), ...} for
        stages from the first.

    Raises:
        ValueError: `neck` or `trainable_layers` is invalid.
    """

    def __init__(
        self, backbone: RedNetBackbone, neck: Layer, extra_blocks: ExtraFPNBlock, channels: int, trainable_layers: int
    ):
        super().__init__()
        _check_layer("neck", neck)
        layers = [backbone.embedder, *backbone.encoder.stages]
        if not 0 <= trainable_layers <= len(layers):
            raise ValueError(f"trainable_layers is {trainable_layers}, expected 0 to {len(layers)} (stem and stages)")
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, extra_blocks)
        if neck == "involution":
            self.fpn.layer_blocks = nn.ModuleList(_involution(channels) for _ in backbone.channels)
        self.out_channels = channels  # torchvision's detectors read it
        self.num_frozen = len(layers) - trainable_layers
        for layer in layers[: self.num_frozen]:
            layer.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "RedNetFPN":
        super().train(mode)
        if self.num_frozen > 0:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            for layer in [self.body.embedder, *self.body.encoder.stages][: self.num_frozen]:
                layer.eval()  # without stochastic depth
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        features = self.body(images).feature_maps
        return self.fpn(OrderedDict((str(n), feature) for n, feature in enumerate(features)))


def fasterrcnn_rednet_fpn(
    backbone: RedNetBackbone,
    num_classes: int,
    neck: Layer = "convolution",
    head: Layer = "convolution",
    *,
    channels: int = 256,
    trainable_layers: int = 3,
    style: Style = "torchvision",
    **options,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al., NeurIPS 2015) with a RedNet FPN. Input and output are those of torchvision's model.

    Args:
        backbone: has `out_features=["stage1", "stage2", "stage3", "stage4"]`, and `stem_kernel_size=7` in the paper.
        num_classes: the number of classes, including the background, which is class 0.
        neck: `"involution"` replaces the 3x3 convolutions of the feature pyramid.
        head: `"involution"` replaces the 3x3 convolution of the region proposal network.
        channels: the number of channels of the feature pyramid.
        trainable_layers: how many of the stem and the four stages are trained, see `RedNetFPN`. 3 freezes the stem and
            the first stage, as in the paper.
        style: `"mmdetection"` computes anchors and the features of regions as MMDetection does, for weights that were
            trained with it, see `rednet.mmdetection`.
        options: keyword arguments of `torchvision.models.detection.FasterRCNN`.

    Raises:
        ValueError: the backbone has other `out_features`, its `num_channels` does not match `image_mean`, or `neck`,
            `head`, `trainable_layers` or `style` is invalid.
    """
    _check_channels(backbone, options)
    return FasterRCNN(
        _pyramid(backbone, STAGES, neck, LastLevelMaxPool(), channels, trainable_layers),
        num_classes,
        rpn_head=_rpn_head(channels, head),
        **{**rcnn_layers(style, backbone.config.stem_stride, with_masks=False), **options},
    )


def maskrcnn_rednet_fpn(
    backbone: RedNetBackbone,
    num_classes: int,
    neck: Layer = "convolution",
    head: Layer = "convolution",
    *,
    channels: int = 256,
    trainable_layers: int = 3,
    style: Style = "torchvision",
    **options,
) -> MaskRCNN:
    """Mask R-CNN (He et al., ICCV 2017) with a RedNet FPN. Input and output are those of torchvision's model.

    Args:
        head: `"involution"` replaces the 3x3 convolutions of the region proposal network and of the mask head.
        options: keyword arguments of `torchvision.models.detection.MaskRCNN`.

    For the other arguments and the errors, see `fasterrcnn_rednet_fpn`.
    """
    _check_channels(backbone, options)
    mask_head = MaskRCNNHeads(channels, [channels] * 4, dilation=1)
    if head == "involution":
        for layer in mask_head:
            layer[0] = _involution(channels)
    return MaskRCNN(
        _pyramid(backbone, STAGES, neck, LastLevelMaxPool(), channels, trainable_layers),
        rpn_head=_rpn_head(channels, head),
        box_predictor=FastRCNNPredictor(REPRESENTATION_SIZE, num_classes),
        mask_head=mask_head,
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes),
        **{**rcnn_layers(style, backbone.config.stem_stride, with_masks=True), **options},
    )


def retinanet_rednet_fpn(
    backbone: RedNetBackbone,
    num_classes: int,
    neck: Layer = "convolution",
    *,
    channels: int = 256,
    trainable_layers: int = 3,
    style: Style = "torchvision",
    **options,
) -> RetinaNet:
    """RetinaNet (Lin et al., ICCV 2017) with a RedNet FPN. Input and output are those of torchvision's model.

    Args:
        backbone: has `out_features=["stage2", "stage3", "stage4"]`, and `stem_kernel_size=7` in the paper.
        neck: `"involution"` replaces the 3x3 convolutions of these three levels. The two coarser levels come from
            strided convolutions. The paper has no involution head for RetinaNet.
        style: `"mmdetection"` computes anchors and the two coarser levels as MMDetection does, for weights that were
            trained with it, see `rednet.mmdetection`.
        options: keyword arguments of `torchvision.models.detection.RetinaNet`.

    For the other arguments and the errors, see `fasterrcnn_rednet_fpn`.
    """
    _check_channels(backbone, options)
    coarser = coarser_levels(style, backbone.channels[-1], channels)
    return RetinaNet(
        _pyramid(backbone, STAGES[1:], neck, coarser, channels, trainable_layers),
        num_classes,
        **{**retinanet_layers(style, backbone.config.stem_stride), **options},
    )


DETECTORS = {
    "fasterrcnn": fasterrcnn_rednet_fpn,
    "maskrcnn": maskrcnn_rednet_fpn,
    "retinanet": retinanet_rednet_fpn,
}


def save_detector(
    folder: str | os.PathLike, model: nn.Module, detector: str, options: dict, categories: list[dict]
) -> None:
    """
    Writes the state dict to `model.safetensors` and the arguments of the detector to `config.json`.

    Args:
        folder: existing files of these names are replaced, see `rednet.hub.replacing`.
        model: a detector of this module.
        detector: its name in `DETECTORS`.
        options: the arguments of that function other than the backbone. The values must be JSON.
        categories: `{"id": ..., "name": ...}` as in COCO's files, in the order of the labels 1, 2 ... (0 is background).

    Raises:
        FileExistsError: `folder` contains files of a model that is not a RedNet.
    """
    backbone = cast(RedNetFPN, model.backbone).body.config.to_diff_dict()
    config = {"detector": detector, "backbone": backbone, "options": options, "categories": categories}
    with replacing(Path(folder)) as temporary:
        (temporary / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, temporary / SAFE_WEIGHTS_NAME)


def load_detector(folder_or_id: str | os.PathLike) -> tuple[nn.Module, list[dict]]:
    """
    Loads a detector that `save_detector` wrote.

    Args:
        folder_or_id: a folder, or the id of a Hub repository (`user/name`).

    Returns:
        The detector in evaluation mode, and its categories.

    Raises:
        OSError: the folder or repository does not exist, or the Hub cannot be reached.
        ValueError: it holds no detector, or a file is damaged or missing. The message names the file.
    """
    config = read_detector_config(folder_or_id)
    if config is None:
        raise ValueError(f"{folder_or_id} holds no detector: {CONFIG_NAME} has no entry 'detector'")
    weights = read_detector_weights(folder_or_id)
    try:
        backbone = RedNetBackbone(RedNetConfig.from_dict(config["backbone"]))
        model = DETECTORS[config["detector"]](backbone, **config["options"])
    except (AttributeError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{folder_or_id}/{CONFIG_NAME} describes no detector: {error}") from error
    expected, given = ({k: list(v.shape) for k, v in state.items()} for state in (model.state_dict(), weights))
    if wrong := sorted(k for k in expected.keys() | given.keys() if expected.get(k) != given.get(k)):
        raise ValueError(
            f"{folder_or_id}/{SAFE_WEIGHTS_NAME} does not match {CONFIG_NAME}: {len(wrong)} weights differ; "
            f"{wrong[0]} is {given.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'no such weight')}"
        )
    model.load_state_dict(weights)
    return model.eval(), config["categories"]


def read_detector_config(folder_or_id: str | os.PathLike) -> dict | None:
    """
    Returns the configuration that `save_detector` wrote, or None if `config.json` belongs to another kind of model.

    Raises:
        OSError, ValueError: as `load_detector`.
    """
    config = read_object(_find_file(folder_or_id, CONFIG_NAME), f"{folder_or_id}/{CONFIG_NAME}")
    if "detector" not in config:
        return None
    if config["detector"] not in list(DETECTORS):
        raise ValueError(
            f"{folder_or_id}/{CONFIG_NAME} has detector {config['detector']!r}, expected one of {list(DETECTORS)}"
        )
    for name, kind in (("backbone", dict), ("options", dict), ("categories", list)):
        if not isinstance(config.get(name), kind):
            raise ValueError(
                f"{folder_or_id}/{CONFIG_NAME} has {name} {config.get(name)!r}, expected a {kind.__name__}"
            )
    return config


def read_detector_weights(folder_or_id: str | os.PathLike) -> dict[str, Tensor]:
    """
    Returns the state dict that `save_detector` wrote.

    Raises:
        OSError, ValueError: as `load_detector`.
    """
    path = _find_file(folder_or_id, SAFE_WEIGHTS_NAME)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{folder_or_id}/{SAFE_WEIGHTS_NAME} is damaged: {error}") from error


def _find_file(folder_or_id: str | os.PathLike, name: str) -> Path:
    """Returns the path of a file in a folder, or in the cache after it is downloaded from a Hub repository."""
    if not Path(folder_or_id).is_dir():
        return Path(cast(str, cached_file(str(folder_or_id), name)))  # it raises OSError instead of returning None
    if not Path(folder_or_id, name).is_file():
        raise ValueError(f"{folder_or_id} holds no model: {name} is missing")
    return Path(folder_or_id, name)


def script_detector(detector: nn.Module) -> torch.jit.ScriptModule:
    """
    Returns `torch.jit.script` of a copy of the detector, in evaluation mode.

    Models of Transformers cannot be scripted, because their `forward` has keyword arguments. So the backbone with its
    pyramid and the involutions of the heads are traced, and the rest, whose control flow depends on the image, is
    scripted. The result takes pictures of any size. A process that loads it needs `import involution` and
    `import torchvision`.
    """
    scripted = copy.deepcopy(detector).eval()
    channels = cast(RedNetFPN, scripted.backbone).body.config.num_channels
    image = torch.zeros(1, channels, 64, 64).to(next(scripted.parameters()))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the checks of shapes hold for all sizes
        # strict=False: the output is a dictionary.
        scripted.backbone = torch.jit.trace(scripted.backbone, image, strict=False)
        for parent in list(scripted.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, Involution2d):
                    setattr(parent, name, torch.jit.trace(layer, image.new_zeros(1, layer.channels, 16, 16)))
        return torch.jit.script(scripted)


def _check_channels(backbone: RedNetBackbone, options: dict) -> None:
    """A mean of three values would broadcast an image of one channel to three."""
    expected = len(options.get("image_mean") or [0, 0, 0])
    if backbone.config.num_channels != expected:
        raise ValueError(
            f"the backbone has num_channels={backbone.config.num_channels}, expected {expected}, the number of values in "
            "image_mean (3 by default)"
        )


def _pyramid(backbone: RedNetBackbone, stages: list[str], *arguments) -> RedNetFPN:
    if backbone.out_features != stages:
        raise ValueError(f"the backbone has out_features={backbone.out_features}, expected {stages}")
    return RedNetFPN(backbone, *arguments)


def _involution(channels: int) -> Involution2d:
    """The paper's 7x7 involution, (B, channels, H, W) to the same shape. No normalization follows it."""
    layer = Involution2d(channels)
    init_identity(layer.span, layer.groups)
    return layer


def _rpn_head(channels: int, kind: Layer) -> RPNHead:
    _check_layer("head", kind)
    head = RPNHead(channels, RPN_ANCHORS)
    if kind == "involution":
        head.conv[0][0] = _involution(channels)
    return head


def _check_layer(name: str, value: str) -> None:
    if value not in ("convolution", "involution"):
        raise ValueError(f"{name} is {value!r}, expected 'convolution' or 'involution'")


__all__ = [
    "DETECTORS",
    "RedNetFPN",
    "fasterrcnn_rednet_fpn",
    "load_detector",
    "maskrcnn_rednet_fpn",
    "read_detector_config",
    "read_detector_weights",
    "retinanet_rednet_fpn",
    "save_detector",
    "script_detector",
]
