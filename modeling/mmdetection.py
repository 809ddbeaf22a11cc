"""The layers in which the detectors of MMDetection 2 and 3, which the authors use, differ from those of torchvision.

A detector with these layers (`style="mmdetection"` in `rednet.detection`) computes from the same weights what MMDetection
computes. This module needs torchvision.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelP6P7


Style = Literal["torchvision", "mmdetection"]
RATIOS = (0.5, 1.0, 2.0)  # height divided by width


class ExactAnchors(AnchorGenerator):
    """Anchors at multiples of the strides, with sizes that are not rounded.

    torchvision rounds the corners of anchors to whole pixels. It also divides the size of the image by the size of the
    feature for the distance between anchors, which is less than the stride if a level has rounded an odd size up: of a
    side of 800 pixels the coarsest level of Faster R-CNN has 13 anchors at a distance of 61 pixels instead of 64.

    Args:
        strides: of each level, in pixels.
        scales: sides of the square anchors of each level, as multiples of its stride. Every scale has all `RATIOS`.
    """

    def __init__(self, strides: list[int], scales: list[float]):
        super().__init__(
            tuple(tuple(stride * scale for scale in scales) for stride in strides), (RATIOS,) * len(strides)
        )
        self.strides = strides

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float64,
        device: torch.device = torch.device("cpu"),
    ) -> Tensor:
        """Returns the anchors (ratios x scales, 4) around the origin: all scales of the first ratio come first."""
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        widths, heights = (sides / roots).flatten(), (sides * roots).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Returns the anchors (number, 4) of each image, from the finest level to the coarsest."""
        sizes = [feature.shape[-2:] for feature in feature_maps]
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        steps = [torch.tensor(stride, device=feature_maps[0].device) for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(sizes, [[step, step] for step in steps]))
        return [anchors for _ in image_list.image_sizes]


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign of regions at half pixels, with as many samples as a bin has pixels.

    torchvision does not subtract the half pixel between the corner of an image and the center of its first pixel, and
    takes 2 x 2 samples of every bin.

    Args:
        strides: of each level, in pixels.
        output_size: number of bins on each side.

    Shape:
        levels {"0": (B, C, H / strides[0], W / strides[0]), ...}, and regions (N_b, 4) of each image, in pixels of the
        image -> (sum of N_b, C, output_size, output_size).
    """

    def __init__(self, strides: list[int], output_size: int):
        super().__init__([str(n) for n in range(len(strides))], output_size, sampling_ratio=0)
        self.strides = strides

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        features = [x[name] for name in self.featmap_names]
        regions = torch.cat(
            [torch.cat([torch.full_like(box[:, :1], n), box], dim=1) for n, box in enumerate(boxes)]
        ).to(features[0].dtype)
        sides = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
        # Regions with sides of less than 112 pixels belong to the finest level, with less than 224 to the next one.
        levels = (sides / 56 + 1e-6).log2().floor().clamp(0, len(features) - 1)
        size = [self.output_size[0], self.output_size[1]]
        pooled = features[0].new_zeros([len(regions), features[0].shape[1]] + size)
        for level, feature in enumerate(features):
            index = torch.where(levels == level)[0]
            part = roi_align(feature, regions[index], size, 1 / self.strides[level], self.sampling_ratio, aligned=True)
            pooled[index] = part.to(pooled.dtype)
        return pooled


class LinearP6P7(LastLevelP6P7):
    """The two coarsest levels of RetinaNet, from the last stage, without the ReLU that torchvision has between them."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(c[-1])
        p.extend([p6, self.p7(p6)])
        names.extend(["p6", "p7"])
        return p, names


def rcnn_layers(style: Style, stem_stride: int, with_masks: bool) -> dict[str, nn.Module]:
    """Returns the keyword arguments that give torchvision's Faster R-CNN or Mask R-CNN a style."""
    if not _is_mmdetection(style):
        return {}
    strides = [stem_stride * 2**n for n in range(5)]
    layers: dict[str, nn.Module] = {
        "rpn_anchor_generator": ExactAnchors(strides, [8]),
        "box_roi_pool": AlignedRoIAlign(strides[:4], 7),
    }
    return {**layers, "mask_roi_pool": AlignedRoIAlign(strides[:4], 14)} if with_masks else layers


def retinanet_layers(style: Style, stem_stride: int) -> dict[str, nn.Module]:
    """Returns the keyword arguments that give torchvision's RetinaNet a style."""
    if not _is_mmdetection(style):
        return {}
    strides = [stem_stride * 2**n for n in range(1, 6)]
    return {"anchor_generator": ExactAnchors(strides, [4 * 2 ** (n / 3) for n in range(3)])}


def coarser_levels(style: Style, in_channels: int, channels: int) -> LastLevelP6P7:
    """Returns the layer that makes the two coarsest levels of RetinaNet."""
    return (LinearP6P7 if _is_mmdetection(style) else LastLevelP6P7)(in_channels, channels)


def _is_mmdetection(style: str) -> bool:
    """Raises ValueError if the style is unknown."""
    if style not in ("torchvision", "mmdetection"):
        raise ValueError(f"style is {style!r}, expected 'torchvision' or 'mmdetection'")
    return style == "mmdetection"
