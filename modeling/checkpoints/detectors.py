"""Detectors from the weights of MMDetection 2 and 3, which the authors use. This module needs torchvision.

The detectors have the layers of `rednet.mmdetection`, so they compute what MMDetection computes. The weights differ in two
ways from those of `rednet.detection`: their names, and the class of the background. It is the first class here. In
MMDetection it is the last one of the scores of Faster R-CNN; boxes, masks and RetinaNet have none.
"""

import re
from functools import partial
from pathlib import Path

import torch
from rednet.checkpoints.layouts import checkpoint_name, label_names, load_weights
from rednet.configuration_rednet import RedNetConfig
from rednet.detection import DETECTORS, STAGES, save_detector
from rednet.modeling_rednet import RedNetBackbone
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights


# From our names of the weights to those of MMDetection, after the prefix of the backbone is removed: substitutions,
# applied one after the other.
RENAMES = [
    # The convolution or involution in a `Sequential`, and the layers of an involution.
    (r"\.reduce\.0\.", ".conv1.conv."),
    (r"\.reduce\.1\.", ".conv1.bn."),
    (r"\.span\.", ".conv2.conv."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.", "neck.fpn_convs."),
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.fpn_convs.3.conv."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.fpn_convs.4.conv."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn_head.rpn_conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"^rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box_head\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^roi_heads\.box_head\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.(?=weight|bias)", r"roi_head.mask_head.convs.\1.conv."),
    (r"^roi_heads\.mask_head\.", "roi_head.mask_head.convs."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
    (r"^head\.classification_head\.conv\.(\d)\.0\.", r"bbox_head.cls_convs.\1.conv."),
    (r"^head\.classification_head\.cls_logits\.", "bbox_head.retina_cls."),
    (r"^head\.regression_head\.conv\.(\d)\.0\.", r"bbox_head.reg_convs.\1.conv."),
    (r"^head\.regression_head\.bbox_reg\.", "bbox_head.retina_reg."),
]
RETINANET_ANCHORS = 9  # at each position: 3 scales x 3 ratios
NEVER = -100.0  # the logit of RetinaNet's background, which no anchor has: its score is 0


def convert_detector(
    detector: str,
    weights: dict[str, Tensor],
    config: RedNetConfig,
    labels: list[str] | None,
    output_dir: Path,
) -> None:
    """
    Writes the detector with these weights to a folder that `load_detector` takes.

    Args:
        detector: its name in `DETECTORS`.
        weights: as `read_checkpoint` returns them.
        config: of the backbone.
        labels: the names of the categories. By default, 80 categories are those of COCO.

    Raises:
        FileExistsError: `output_dir` has files of a model that is not a RedNet.
        ValueError: as `load_weights`, or the number of anchors or categories differs.
    """
    count = count_categories(detector, weights)
    options = detector_options(detector, weights, count)
    names = STAGES[1:] if detector == "retinanet" else STAGES
    with torch.device("meta"):
        values = {**config.to_diff_dict(), "out_features": names, "out_indices": None}
        backbone = RedNetBackbone(RedNetConfig.from_dict(values))
        model = DETECTORS[detector](backbone, **options)
    sources = {name: mmdetection_name(name) for name in model.state_dict()}
    try:
        load_weights(model, weights, sources, background_of(detector))
    except ValueError as error:
        raise ValueError(f"{error} ({detector}). --backbone_only converts the backbone of this detector") from error
    save_detector(output_dir, model, detector, options, categories_of(count, config, labels))


def count_categories(detector: str, weights: dict[str, Tensor]) -> int:
    """
    Returns the number of categories, without the background.

    Raises:
        ValueError: RetinaNet has another number of anchors than 9, or boxes are not predicted for each category.
    """
    scores, boxes = ("bbox_head.retina_cls.weight", "bbox_head.retina_reg.weight")
    if detector == "retinanet":
        given = [len(weights[name]) for name in (scores, boxes) if name in weights]
        if given[0] % RETINANET_ANCHORS or given[1:] not in ([], [4 * RETINANET_ANCHORS]):
            raise ValueError(
                f"the checkpoint has {scores!r} and {boxes!r} with {' and '.join(map(str, given))} channels, expected a "
                f"multiple of {RETINANET_ANCHORS} and {4 * RETINANET_ANCHORS}, for {RETINANET_ANCHORS} anchors at each position. --backbone_only "
                "converts the backbone of this detector"
            )
        return given[0] // RETINANET_ANCHORS
    return len(weights["roi_head.bbox_head.fc_cls.weight"]) - 1


def detector_options(detector: str, weights: dict[str, Tensor], num_categories: int) -> dict:
    """Returns the arguments of the function in `DETECTORS`, without the backbone."""
    lateral = weights.get("neck.lateral_convs.0.conv.weight")

    def layer(name: str) -> str:
        return "involution" if f"{name}.conv2.conv.weight" in weights else "convolution"

    options = {
        "num_classes": num_categories + 1,
        "neck": layer("neck.fpn_convs.0"),
        "channels": 256 if lateral is None else len(lateral),
        "style": "mmdetection",
    }
    if detector == "retinanet":
        return {**options, "detections_per_img": 100}  # torchvision: 300
    return {**options, "head": layer("rpn_head.rpn_conv")}


def mmdetection_name(name: str) -> str:
    """Returns the name that MMDetection has for one of our weights, without its prefix `backbone.`."""
    if name.startswith("backbone.body."):
        return checkpoint_name(name.removeprefix("backbone.body."))
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def background_of(detector: str) -> dict:
    """Returns how to add the background to weights and biases, by their names in our models."""

    def prepend(rows: int, weight: Tensor) -> Tensor:
        # The outputs for the background are never read.
        return torch.cat([weight.new_zeros(rows, *weight.shape[1:]), weight])

    def move(weight: Tensor) -> Tensor:
        return weight.roll(1, 0)

    def insert(value: float, weight: Tensor) -> Tensor:
        by_anchor = weight.unflatten(0, (RETINANET_ANCHORS, -1))
        background = by_anchor[:, :1].new_full(by_anchor[:, :1].shape, value)
        return torch.cat([background, by_anchor], dim=1).flatten(0, 1)

    if detector == "retinanet":
        logits = "head.classification_head.cls_logits"
        return {f"{logits}.weight": partial(insert, 0.0), f"{logits}.bias": partial(insert, NEVER)}
    changes = {"box_predictor.cls_score": move, "box_predictor.bbox_pred": partial(prepend, 4)}
    if detector == "maskrcnn":
        changes["mask_predictor.mask_fcn_logits"] = partial(prepend, 1)
    return {f"roi_heads.{name}.{part}": change for name, change in changes.items() for part in ("weight", "bias")}


def categories_of(count: int, config: RedNetConfig, labels: list[str] | None) -> list[dict]:
    """Returns the categories in the form of COCO's files. Those of COCO have the ids of its files, which have gaps."""
    by_id = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # "N/A" at the ids that are not used
    coco = [name for name in by_id[1:] if name != "N/A"]
    names = coco if labels is None and count == len(coco) else label_names(count, config, labels)
    return [{"id": by_id.index(name) if names == coco else n, "name": name} for n, name in enumerate(names, start=1)]
