"""torchvision's detectors on RedNet (paper, section 4). Needs torchvision, which the rest of the family does not."""

import copy
import json
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file

from involution import Involution2d

from .configuration_rednet import RedNetConfig
from .hub import replacing
from .modeling_rednet import RedNetBackbone, init_identity


Layer = Literal["convolution", "involution"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
REPRESENTATION_SIZE = 1024  # channels of torchvision's box head
ANCHORS = 3  # of each size in the region proposal network: torchvision's aspect ratios 1:2, 1:1 and 2:1


class RedNetFPN(nn.Module):
    """RedNet and a feature pyramid (Lin et al., CVPR 2017), as torchvision's detectors take their backbone.

    The involution neck is the paper's: a 7x7 involution in the place of every level's 3x3 output convolution, without
    normalization or activation after it, as there is none after the convolution.

    Args:
        backbone: its `out_features` are the stages that the pyramid is built on.
        neck: the output layer of every level.
        extra_blocks: makes the coarser levels that detectors put on top.
        channels: of every level.
        trainable_layers: of stem and stages, counted from the last stage. Where some are frozen, BatchNorm in all of
            the backbone keeps its statistics: the few images a detector trains on at a time have none to rely on.

    Shape:
        images (B, 3, H, W) -> {"0": (B, channels, H / 4, W / 4), "1": (B, channels, H / 8, W / 8), ...} for stages
        from the first.
    """

    def __init__(
        self, backbone: RedNetBackbone, neck: Layer, extra_blocks: ExtraFPNBlock, channels: int, trainable_layers: int
    ):
        super().__init__()
        _check_layer("neck", neck)
        layers = [backbone.embedder, *backbone.encoder.stages]
        if not 0 <= trainable_layers <= len(layers):
            raise ValueError(f"trainable_layers is {trainable_layers}, expected 0 to {len(layers)}: stem and stages")
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(backbone.channels, channels, extra_blocks)
        if neck == "involution":
            self.fpn.layer_blocks = nn.ModuleList(_involution(channels) for _ in backbone.channels)
        self.out_channels = channels  # this name is torchvision's interface
        self.frozen = trainable_layers < len(layers)
        for layer in layers[: len(layers) - trainable_layers]:
            layer.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "RedNetFPN":
        super().train(mode)
        if self.frozen:
            self.body.eval()
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
    **options,
) -> FasterRCNN:
    """Faster R-CNN (Ren et al., NeurIPS 2015) on a RedNet FPN.

    Args:
        backbone: with `out_features=["stage1", "stage2", "stage3", "stage4"]`. The paper's has `stem_kernel_size=7`.
        num_classes: with the background, which is class 0.
        neck: `"involution"` replaces the 3x3 convolutions of the feature pyramid.
        head: `"involution"` replaces the 3x3 convolution of the region proposal network.
        channels: of the feature pyramid.
        trainable_layers: of stem and four stages; 3 freezes the stem and the first stage, as in the paper.
        options: of `torchvision.models.detection.FasterRCNN`.

    Raises:
        ValueError: the backbone gives other stages or takes other channels than the detector's pictures have, or one
            of the arguments is none of the above.
    """
    _check_channels(backbone, options)
    return FasterRCNN(
        _pyramid(backbone, STAGES, neck, LastLevelMaxPool(), channels, trainable_layers),
        num_classes,
        rpn_head=_rpn_head(channels, head),
        **options,
    )


def maskrcnn_rednet_fpn(
    backbone: RedNetBackbone,
    num_classes: int,
    neck: Layer = "convolution",
    head: Layer = "convolution",
    *,
    channels: int = 256,
    trainable_layers: int = 3,
    **options,
) -> MaskRCNN:
    """Mask R-CNN (He et al., ICCV 2017) on a RedNet FPN.

    Args:
        head: `"involution"` replaces the 3x3 convolutions of the region proposal network and of the mask head.
        options: of `torchvision.models.detection.MaskRCNN`.

    The other arguments and errors are those of `fasterrcnn_rednet_fpn`.
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
        **options,
    )


def retinanet_rednet_fpn(
    backbone: RedNetBackbone,
    num_classes: int,
    neck: Layer = "convolution",
    *,
    channels: int = 256,
    trainable_layers: int = 3,
    **options,
) -> RetinaNet:
    """RetinaNet (Lin et al., ICCV 2017) on a RedNet FPN.

    Args:
        backbone: with `out_features=["stage2", "stage3", "stage4"]`. The paper's has `stem_kernel_size=7`.
        neck: `"involution"` replaces the 3x3 convolutions of these three levels. The two coarser levels above come
            from strided convolutions, and the paper has no involution head.
        options: of `torchvision.models.detection.RetinaNet`.

    The other arguments and errors are those of `fasterrcnn_rednet_fpn`.
    """
    _check_channels(backbone, options)
    coarser = LastLevelP6P7(backbone.channels[-1], channels)
    return RetinaNet(_pyramid(backbone, STAGES[1:], neck, coarser, channels, trainable_layers), num_classes, **options)


DETECTORS = {
    "fasterrcnn": fasterrcnn_rednet_fpn,
    "maskrcnn": maskrcnn_rednet_fpn,
    "retinanet": retinanet_rednet_fpn,
}


def save_detector(
    folder: str | os.PathLike, model: nn.Module, detector: str, options: dict, categories: list[dict]
) -> None:
    """
    Writes `model.safetensors`, the state dict, and `config.json`, from which `load_detector` builds the model again.

    Args:
        folder: the files of these names in it are replaced, see `rednet.hub.replacing`.
        detector: a name in `DETECTORS`.
        options: what that function was called with, beside the backbone; values that JSON has.
        categories: `{"id": ..., "name": ...}` as in COCO's files, in the order of the labels 1, 2 ... (0 is background).

    Raises:
        FileExistsError: `folder` holds files of a model's names that are not those of a saved RedNet.
    """
    backbone = model.backbone.body.config.to_diff_dict()
    config = {"detector": detector, "backbone": backbone, "options": options, "categories": categories}
    with replacing(Path(folder)) as beside:
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, beside / SAFE_WEIGHTS_NAME)


def load_detector(folder_or_id: str | os.PathLike) -> tuple[nn.Module, list[dict]]:
    """
    The model that `save_detector` wrote, in evaluation mode, and its categories.

    Args:
        folder_or_id: a folder, or the id of a Hub repository (`user/name`) with its files.

    Raises:
        OSError: there is no such folder or repository, or the Hub cannot be reached.
        ValueError: it is no detector, or a file of it is damaged or missing. The message names it.
    """
    config = read_detector_config(folder_or_id)
    if config is None:
        raise ValueError(
            f"{folder_or_id} is not a detector that save_detector wrote: its config.json names no detector"
        )
    weights = read_detector_weights(folder_or_id)
    try:
        backbone = RedNetBackbone(RedNetConfig.from_dict(config["backbone"]))
        model = DETECTORS[config["detector"]](backbone, **config["options"])
    except (AttributeError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{folder_or_id}/config.json is not that of a detector: {error}") from error
    expected, found = ({k: list(v.shape) for k, v in one.items()} for one in (model.state_dict(), weights))
    if wrong := sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)):
        raise ValueError(
            f"the weights in {folder_or_id} are not those of its config.json: {len(wrong)} differ, {wrong[0]} is "
            f"{found.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'not to be there')}"
        )
    model.load_state_dict(weights)
    return model.eval(), config["categories"]


def read_detector_config(folder_or_id: str | os.PathLike) -> dict | None:
    """
    The config.json that `save_detector` wrote; None where it is that of another model.

    Raises:
        OSError, ValueError: as `load_detector`.
    """
    path = _find_file(folder_or_id, CONFIG_NAME)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it holds {type(config).__name__}, expected an object")
    except ValueError as error:
        raise ValueError(f"{folder_or_id}/{CONFIG_NAME} is damaged: {error}") from error
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
    Raises:
        OSError, ValueError: as `load_detector`.
    """
    path = _find_file(folder_or_id, SAFE_WEIGHTS_NAME)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{folder_or_id}/{SAFE_WEIGHTS_NAME} is damaged: {error}") from error


def _find_file(folder_or_id: str | os.PathLike, name: str) -> Path:
    """A file of a folder, or of a repository, which is fetched from the Hub."""
    if not Path(folder_or_id).is_dir():
        return Path(cached_file(str(folder_or_id), name))
    if not Path(folder_or_id, name).is_file():
        raise ValueError(f"{folder_or_id} is not a saved model: {name} is missing")
    return Path(folder_or_id, name)


def script_detector(detector: nn.Module) -> torch.jit.ScriptModule:
    """
    `torch.jit.script` of a detector of this module, in evaluation mode; the detector itself stays as it is.

    Models of Transformers, whose `forward` takes any keywords, cannot be scripted. So the backbone with its pyramid is
    traced, as are the involutions of the heads, and the rest of the detector, whose steps follow what it finds, is
    scripted. The result takes pictures of any size; a process that loads it needs `import involution` and
    `import torchvision`.
    """
    scripted = copy.deepcopy(detector).eval()
    channels = scripted.backbone.body.config.num_channels
    image = torch.zeros(1, channels, 64, 64).to(next(scripted.parameters()))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # checks of shapes, which hold for all sizes
        # Not strict: the features are a dictionary.
        scripted.backbone = torch.jit.trace(scripted.backbone, image, strict=False)
        for parent in list(scripted.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, Involution2d):
                    setattr(parent, name, torch.jit.trace(layer, image.new_zeros(1, layer.channels, 16, 16)))
        return torch.jit.script(scripted)


def _check_channels(backbone: RedNetBackbone, options: dict) -> None:
    """torchvision's mean of three channels would make three of one."""
    expected = len(options.get("image_mean") or [0, 0, 0])
    if backbone.config.num_channels != expected:
        raise ValueError(
            f"the backbone has num_channels={backbone.config.num_channels}, expected {expected}, as many as image_mean "
            "has (torchvision's for RGB by default)"
        )


def _pyramid(backbone: RedNetBackbone, stages: list[str], *arguments) -> RedNetFPN:
    if backbone.out_features != stages:
        raise ValueError(f"the backbone has out_features={backbone.out_features}, this detector expects {stages}")
    return RedNetFPN(backbone, *arguments)


def _involution(channels: int) -> Involution2d:
    """The paper's 7x7 involution, (B, channels, H, W) to the same shape. No normalization follows it."""
    layer = Involution2d(channels)
    init_identity(layer.span, layer.groups)
    return layer


def _rpn_head(channels: int, kind: Layer) -> RPNHead:
    _check_layer("head", kind)
    head = RPNHead(channels, ANCHORS)
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
