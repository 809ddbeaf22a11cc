"""The necks and heads of the authors' detectors and segmentation models, as plain layers with the names of their weights.

Every function computes what MMDetection (release 2 and 3) or MMSegmentation computes, one region, level or class at a
time. Nothing of `rednet` is used.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms


def tree(**children: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(children)


def convolution(in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> nn.ModuleDict:
    return tree(conv=nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2))


def involution(channels: int) -> nn.ModuleDict:
    hidden = channels // 4
    reduce = tree(conv=nn.Conv2d(channels, hidden, 1, bias=False), bn=nn.BatchNorm2d(hidden))
    return tree(conv1=reduce, conv2=tree(conv=nn.Conv2d(hidden, 49 * channels // 16, 1)))


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution, or a 7x7 involution with 16 channels per group."""
    if not isinstance(layer, nn.ModuleDict):
        return layer(x)
    if "conv1" not in layer:
        return layer["conv"](x)
    batch, channels, height, width = x.shape
    hidden = layer["conv1"]["bn"](layer["conv1"]["conv"](x)).relu()
    kernel = layer["conv2"]["conv"](hidden).view(batch, channels // 16, 1, 49, height, width)
    columns = F.unfold(x, 7, padding=3).view(batch, channels // 16, 16, 49, height, width)
    return (kernel * columns).sum(3).reshape(x.shape)


def fpn(sizes: list[int], channels: int, kind: str, extra: int | None = None) -> nn.ModuleDict:
    """Args: extra: the channels of the feature that the two strided convolutions of RetinaNet start from."""
    outputs = [involution(channels) if kind == "involution" else convolution(channels, channels) for _ in sizes]
    if extra is not None:
        outputs += [convolution(extra, channels, stride=2), convolution(channels, channels, stride=2)]
    laterals = [convolution(size, channels, 1) for size in sizes]
    return tree(lateral_convs=nn.ModuleList(laterals), fpn_convs=nn.ModuleList(outputs))


def run_fpn(neck: nn.ModuleDict, features: list[Tensor]) -> list[Tensor]:
    """The levels of the features, and the coarser ones if the neck has layers for them."""
    sums = [run(layer, feature) for layer, feature in zip(neck["lateral_convs"], features)]
    for n in reversed(range(len(sums) - 1)):
        rows, columns = (
            (torch.arange(size) * other // size) for size, other in zip(sums[n].shape[2:], sums[n + 1].shape[2:])
        )
        sums[n] = sums[n] + sums[n + 1][:, :, rows][:, :, :, columns]
    levels = [run(layer, total) for layer, total in zip(neck["fpn_convs"], sums)]
    coarser = features[-1]
    for layer in neck["fpn_convs"][len(levels) :]:
        coarser = run(layer, coarser)
        levels.append(coarser)
    return levels


def semantic_head(channels: int, width: int, num_classes: int) -> nn.ModuleDict:
    """The modules of a level are convolutions and, in levels that are not the finest, upsamplings between them."""

    def block(in_channels: int) -> nn.ModuleDict:
        return tree(conv=nn.Conv2d(in_channels, width, 3, padding=1, bias=False), bn=nn.BatchNorm2d(width))

    levels = [nn.Sequential(block(channels))]
    for length in (1, 2, 3):
        layers = [(block(channels if n == 0 else width), nn.Upsample(scale_factor=2)) for n in range(length)]
        levels.append(nn.Sequential(*[layer for pair in layers for layer in pair]))
    return tree(scale_heads=nn.ModuleList(levels), conv_seg=nn.Conv2d(width, num_classes, 1))


def run_semantic_head(head: nn.ModuleDict, levels: list[Tensor]) -> Tensor:
    total = 0
    for layers, x in zip(head["scale_heads"], levels):
        for layer in layers:
            if isinstance(layer, nn.Upsample):
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            else:
                x = layer["bn"](layer["conv"](x)).relu()
        total = total + F.interpolate(x, size=levels[0].shape[2:], mode="bilinear", align_corners=False)
    return head["conv_seg"](total)


def rcnn(sizes: list[int], channels: int, count: int, neck: str, head: str, masks: bool) -> nn.ModuleDict:
    """Faster or Mask R-CNN for `count` categories, without the backbone."""
    is_involution = head == "involution"
    rpn_conv = involution(channels) if is_involution else nn.Conv2d(channels, channels, 3, padding=1)
    rpn = tree(rpn_conv=rpn_conv, rpn_cls=nn.Conv2d(channels, 3, 1), rpn_reg=nn.Conv2d(channels, 12, 1))
    shared = nn.ModuleList([nn.Linear(channels * 49, 1024), nn.Linear(1024, 1024)])
    parts = {
        "bbox_head": tree(shared_fcs=shared, fc_cls=nn.Linear(1024, count + 1), fc_reg=nn.Linear(1024, 4 * count))
    }
    if masks:
        convs = [
            nn.ModuleList([involution(channels)]) if is_involution else convolution(channels, channels)
            for _ in range(4)
        ]
        upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        logits = nn.Conv2d(channels, count, 1)
        parts["mask_head"] = tree(convs=nn.ModuleList(convs), upsample=upsample, conv_logits=logits)
    return tree(neck=fpn(sizes, channels, neck), rpn_head=rpn, roi_head=tree(**parts))


def retinanet(sizes: list[int], channels: int, count: int, neck: str) -> nn.ModuleDict:
    def towers() -> nn.ModuleList:
        return nn.ModuleList(convolution(channels, channels) for _ in range(4))

    head = tree(
        cls_convs=towers(),
        reg_convs=towers(),
        retina_cls=nn.Conv2d(channels, 9 * count, 3, padding=1),
        retina_reg=nn.Conv2d(channels, 36, 3, padding=1),
    )
    return tree(neck=fpn(sizes[1:], channels, neck, extra=sizes[-1]), bbox_head=head)


def anchors(height: int, width: int, stride: int, sides: list[float]) -> Tensor:
    """(height * width * ratios * sides, 4), around the multiples of the stride."""
    rows = []
    for y in range(height):
        for x in range(width):
            for ratio in (0.5, 1.0, 2.0):
                for side in sides:
                    w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
                    rows.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    return torch.tensor(rows, dtype=torch.float64)


def decode(boxes: Tensor, deltas: Tensor, deviations: list[float], size: tuple[int, int]) -> Tensor:
    """Moves and scales boxes (N, 4), and clips them to an image of `size`."""
    dx, dy, dw, dh = (deltas * torch.tensor(deviations, dtype=deltas.dtype)).unbind(1)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + w / 2 + dx * w, boxes[:, 1] + h / 2 + dy * h
    limit = math.log(1000 / 16)
    w, h = w * dw.clamp(-limit, limit).exp(), h * dh.clamp(-limit, limit).exp()
    x1, x2 = ((x + sign * w / 2).clamp(0, size[1]) for sign in (-1, 1))
    y1, y2 = ((y + sign * h / 2).clamp(0, size[0]) for sign in (-1, 1))
    return torch.stack([x1, y1, x2, y2], dim=1)


def by_anchor(output: Tensor, count: int) -> Tensor:
    """(1, anchors * count, H, W) to (H * W * anchors, count)."""
    return output[0].permute(1, 2, 0).reshape(-1, count)


def propose(head: nn.ModuleDict, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The regions of a region proposal network in an image of `size`, the best first: at most 1000."""
    kept = []
    for n, level in enumerate(levels):
        hidden = run(head["rpn_conv"], level).relu()
        scores = by_anchor(head["rpn_cls"](hidden), 1)[:, 0].sigmoid()
        deltas, stride = by_anchor(head["rpn_reg"](hidden), 4), 4 * 2**n
        boxes = decode(anchors(*level.shape[2:], stride, [8 * stride]), deltas, [1.0] * 4, size)
        scores, best = scores.topk(min(1000, len(scores)))
        boxes = boxes[best]
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores = boxes[has_area], scores[has_area]
        chosen = nms(boxes, scores, 0.7)
        kept.append(torch.cat([boxes[chosen], scores[chosen, None]], dim=1))
    proposals = torch.cat(kept)
    return proposals[proposals[:, 4].argsort(descending=True)][:1000, :4]


def interpolation(points: Tensor, size: int) -> Tensor:
    """(P, size): the weights of the pixels for a value at each of P points. More than a pixel outside it is 0."""
    inside = (points >= -1) & (points <= size)
    points = points.clamp(0, size - 1)
    weights = 1 - (points[:, None] - torch.arange(size, dtype=points.dtype)).abs()
    return weights.clamp(min=0) * inside[:, None]


def pool(levels: list[Tensor], regions: Tensor, bins: int) -> Tensor:
    """RoIAlign: the features (N, C, bins, bins) of regions (N, 4) of one image, each from the level for its size."""
    pooled = []
    for region in regions:
        side = math.sqrt((region[2] - region[0]) * (region[3] - region[1]))
        n = next((n for n, limit in enumerate((112, 224, 448)) if side < limit), 3)
        level, corners = levels[n][0], region / (4 * 2**n) - 0.5
        weights, samples = [], []
        for low, high, size in zip(corners[:2].flip(0), corners[2:].flip(0), level.shape[1:]):
            samples.append(max(1, math.ceil((high - low) / bins)))
            steps = (torch.arange(bins * samples[-1], dtype=region.dtype) + 0.5) / (bins * samples[-1])
            weights.append(interpolation(low + steps * (high - low), size))
        values = weights[0] @ level @ weights[1].T
        pooled.append(values.unflatten(2, (bins, -1)).unflatten(1, (bins, -1)).mean((2, 4)))
    return torch.stack(pooled)


def classify(head: nn.ModuleDict, features: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (N, count + 1) with the background last, and deltas (N, 4 * count) of regions."""
    x = features.flatten(1)
    for layer in head["shared_fcs"]:
        x = layer(x).relu()
    return head["fc_cls"](x).softmax(1), head["fc_reg"](x)


def outline(head: nn.ModuleDict, features: Tensor, labels: Tensor) -> Tensor:
    """The masks (N, 28, 28) of regions with these labels."""
    for layer in head["convs"]:
        features = run(layer[0] if isinstance(layer, nn.ModuleList) else layer, features).relu()
    masks = head["conv_logits"](head["upsample"](features).relu()).sigmoid()
    return torch.stack([mask[label] for mask, label in zip(masks, labels)])


def best_of_each_class(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept = []
    for label in labels.unique():
        index = torch.where(labels == label)[0]
        kept.append(index[nms(boxes[index], scores[index], 0.5)])
    index = torch.cat(kept)
    index = index[scores[index].argsort(descending=True)][:100]
    return boxes[index], scores[index], labels[index]


def detect_rcnn(model: nn.ModuleDict, features: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4), scores and labels (from 0, without background) in one image."""
    levels = run_fpn(model["neck"], features)
    levels.append(levels[-1][:, :, ::2, ::2])
    regions = propose(model["rpn_head"], levels, size)
    scores, deltas = classify(model["roi_head"]["bbox_head"], pool(levels, regions, 7))
    boxes, confidence, labels = [], [], []
    for label in range(scores.shape[1] - 1):
        sure = scores[:, label] > 0.05
        moved = decode(regions, deltas[:, 4 * label : 4 * label + 4], [0.1, 0.1, 0.2, 0.2], size)
        boxes.append(moved[sure])
        confidence.append(scores[sure, label])
        labels.append(torch.full((int(sure.sum()),), label))
    return best_of_each_class(torch.cat(boxes), torch.cat(confidence), torch.cat(labels))


def detect_retinanet(
    model: nn.ModuleDict, features: list[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """As `detect_rcnn`. MMDetection 3: the 1000 best pairs of anchor and label of every level."""
    head, boxes, confidence, labels = model["bbox_head"], [], [], []
    for n, level in enumerate(run_fpn(model["neck"], features[1:])):
        score, delta, stride = level, level, 8 * 2**n
        for one, other in zip(head["cls_convs"], head["reg_convs"]):
            score, delta = run(one, score).relu(), run(other, delta).relu()
        count = head["retina_cls"].out_channels // 9
        scores, deltas = by_anchor(head["retina_cls"](score), count).sigmoid(), by_anchor(head["retina_reg"](delta), 4)
        places = anchors(*level.shape[2:], stride, [4 * stride * 2 ** (k / 3) for k in range(3)])
        best = [(value, index) for index, value in enumerate(scores.flatten().tolist()) if value > 0.05]
        index = torch.tensor([index for _, index in sorted(best, reverse=True)[:1000]], dtype=torch.int64)
        boxes.append(decode(places, deltas, [1.0] * 4, size)[index // count])
        confidence.append(scores.flatten()[index])
        labels.append(index % count)
    return best_of_each_class(torch.cat(boxes), torch.cat(confidence), torch.cat(labels))
