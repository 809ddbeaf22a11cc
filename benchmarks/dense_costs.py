"""Parameters and operations of RedNet-50 in detection and segmentation, against those of the paper.

    python benchmarks/dense_costs.py > benchmarks/results/dense-costs.md

Requires torchvision. Models and images are on the meta device, so nothing is computed.
"""

import argparse

import torch
from rednet.configuration_rednet import RedNetConfig
from rednet.detection import STAGES, fasterrcnn_rednet_fpn, maskrcnn_rednet_fpn, retinanet_rednet_fpn
from rednet.modeling_rednet import RedNetBackbone, RedNetForSemanticSegmentation
from rednet.profile import count_macs, count_parameters
from torch import nn
from transformers import UperNetConfig, UperNetForSemanticSegmentation


# Model, neck, head, and the paper's parameters (10^6) and operations (10^9), from section 4 and the authors' README.
PUBLISHED = [
    ("Faster R-CNN", "convolution", "convolution", 31.6, 177.9),
    ("Faster R-CNN", "involution", "convolution", 29.5, 135.0),
    ("Faster R-CNN", "involution", "involution", 29.0, 91.5),
    ("Mask R-CNN", "convolution", "convolution", 34.2, 224.2),
    ("Mask R-CNN", "involution", "convolution", 32.2, 181.3),
    ("Mask R-CNN", "involution", "involution", 29.5, 104.6),
    ("RetinaNet", "convolution", "convolution", 27.8, 210.1),
    ("RetinaNet", "involution", "convolution", 26.3, 199.9),
    ("Semantic FPN", "convolution", "convolution", 18.5, 293.9),
    ("Semantic FPN", "involution", "convolution", 16.4, 205.2),
    ("UPerNet", "convolution", "convolution", 56.4, 1825.6),
]
DETECTORS = {
    "Faster R-CNN": fasterrcnn_rednet_fpn,
    "Mask R-CNN": maskrcnn_rednet_fpn,
    "RetinaNet": retinanet_rednet_fpn,
}
COCO_CLASSES, CITYSCAPES_CLASSES = 80, 19
COCO_SIZE, CITYSCAPES_SIZE = (800, 1280), (1024, 2048)

TEXT = f"""\
# RedNet-50 in detection and segmentation

Parameters in millions and multiply-accumulates in 10^9, counted by `rednet.count_parameters` and `rednet.count_macs`,
and those of the paper. Written by `python benchmarks/dense_costs.py`; a test compares it with the code.

{{table}}
Detectors: {COCO_CLASSES} classes, an image of {COCO_SIZE[1]} x {COCO_SIZE[0]}, 1000 regions to the box head and 100 to the mask head. Segmentation:
{CITYSCAPES_CLASSES} classes, an image of {CITYSCAPES_SIZE[1]} x {CITYSCAPES_SIZE[0]}. The paper does not state these sizes: they reproduce its operations.

Why they differ from the paper's in the last digits:

- The paper's parameters of detectors are those that are trained: without stem and first stage (139,086), which are
  frozen. In segmentation nothing is frozen.
- torchvision predicts boxes (R-CNN), masks and scores (RetinaNet) for the background as well: 4,100 parameters more in
  Faster R-CNN, 4,357 in Mask R-CNN and 20,745 in RetinaNet than with {COCO_CLASSES} classes alone.
- The paper's operations count biases, normalization, activations and pooling; ours do not.
- Mask R-CNN's transposed convolution and last convolution are 6.7 x 10^9 of our operations. Without them both rows with
  a convolution head agree with the paper to 0.6 %, so it appears to leave them out there; the row with an involution
  head agrees with them.
- UPerNet's auxiliary head, 2.4 million parameters, is in the paper's parameters, but not in its operations.
  Transformers runs it in inference as well, which is 19.4 x 10^9 of our operations.
"""


def build(name: str, neck: str, head: str) -> tuple[nn.Module, int, int]:
    """The model of a row, and height and width of its image."""
    if name in DETECTORS:
        stages = STAGES[1:] if name == "RetinaNet" else STAGES
        backbone = RedNetBackbone(RedNetConfig(stem_kernel_size=7, out_features=stages))
        options = {} if name == "RetinaNet" else {"head": head}
        return DETECTORS[name](backbone, COCO_CLASSES + 1, neck, **options), *COCO_SIZE
    if name == "UPerNet":
        backbone_config = RedNetConfig(stem_kernel_size=7, out_features=STAGES)
        config = UperNetConfig(backbone_config=backbone_config, num_labels=CITYSCAPES_CLASSES)
        return UperNetForSemanticSegmentation(config), *CITYSCAPES_SIZE
    config = RedNetConfig(stem_kernel_size=7, num_labels=CITYSCAPES_CLASSES, neck_type=neck)
    return RedNetForSemanticSegmentation(config), *CITYSCAPES_SIZE


def count(name: str, neck: str, head: str) -> tuple[int, int, int]:
    """Parameters, trained parameters, and multiply-accumulates."""
    with torch.device("meta"):
        model, height, width = build(name, neck, head)
    return count_parameters(model), count_parameters(model, trainable_only=True), count_macs(model, height, width)


def table() -> str:
    """The text of `benchmarks/results/dense-costs.md`."""
    lines = [
        "| | neck | head | parameters | trained | in the paper | MACs | in the paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, neck, head, paper_parameters, paper_macs in PUBLISHED:
        parameters, trained, macs = count(name, neck, head)
        lines.append(
            f"| {name} | {neck} | {head} | {parameters / 1e6:.3f} | {trained / 1e6:.3f} | {paper_parameters} "
            f"| {macs / 1e9:.1f} | {paper_macs} |"
        )
    return TEXT.format(table="\n".join(lines) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(table(), end="")
