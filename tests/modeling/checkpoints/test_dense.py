"""Detectors and segmentation models in the authors' layouts: converted, they compute what the authors' code computes."""

import os
import re
from functools import partial

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from rednet import RedNetBackbone, RedNetConfig
from rednet.checkpoints.layouts import checkpoint_name
from rednet.checkpoints.samples import describe_samples
from rednet.convert_rednet_to_hf import convert
from rednet.detection import load_detector
from rednet.hub import check_hub_folder
from rednet.mmdetection import AlignedRoIAlign, ExactAnchors
from torch import nn
from torchvision.models.detection.image_list import ImageList
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

import plain_openmmlab as plain


SIZES, CHANNELS = [64, 64, 128, 128], 32
ROWS = [
    ("fasterrcnn", "involution", "convolution"),
    ("maskrcnn", "convolution", "convolution"),
    ("maskrcnn", "involution", "involution"),
    ("retinanet", "convolution", None),
    ("retinanet", "involution", None),
]
LABELS = ["cat", "dog", "owl"]
MASKS = 20  # how many masks are compared


@pytest.fixture(scope="module")
def backbone() -> RedNetBackbone:
    """A small RedNet in float64, with statistics as of a trained one."""
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = RedNetConfig(
        embedding_size=32, hidden_sizes=SIZES, depths=[1, 1, 1, 1], stem_kernel_size=7, out_features=stages
    )
    model = RedNetBackbone(config).double()
    set_statistics(model)
    with torch.no_grad():
        model.train()(normalize(picture()))
    return model.eval().float().double()


def picture() -> torch.Tensor:
    """(3, 150, 221): the network gets it padded to 160 x 224, and its coarsest levels have odd sizes."""
    return torch.rand(3, 150, 221, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def normalize(picture: torch.Tensor) -> torch.Tensor:
    """The input of MMDetection's networks: normalized in units of 8-bit pixels, and padded to multiples of 32."""
    mean, deviation = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]], dtype=torch.float64)
    pixels = (255 * picture - mean[:, None, None]) / deviation[:, None, None]
    return nn.functional.pad(pixels, (0, -picture.shape[2] % 32, 0, -picture.shape[1] % 32))[None]


def set_statistics(model: nn.Module) -> None:
    """Lets the next training step set the statistics of all BatchNorm layers, whose weights become 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.momentum = 1.0


def features_of(backbone: RedNetBackbone, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(backbone(images).feature_maps)


def write(path, backbone: RedNetBackbone, parts: nn.Module, **beside) -> str:
    """Writes a checkpoint of the authors' code: the weights of a backbone and of plain necks and heads."""
    state = {f"backbone.{checkpoint_name(name)}": value for name, value in backbone.state_dict().items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02}]}
    torch.save({"state_dict": {**state, **parts.state_dict()}, "optimizer": optimizer, **beside}, path)
    return path


def semantic_fpn(backbone: RedNetBackbone, neck: str, count: int = 3) -> nn.ModuleDict:
    torch.manual_seed(1)
    parts = plain.tree(neck=plain.fpn(SIZES, CHANNELS, neck), decode_head=plain.semantic_head(CHANNELS, 16, count))
    parts = parts.double()
    set_statistics(parts)
    with torch.no_grad():
        segment(parts, features_of(backbone, normalize(picture())))
    return parts.eval()


def segment(parts: nn.ModuleDict, features: list[torch.Tensor]) -> torch.Tensor:
    return plain.run_semantic_head(parts["decode_head"], plain.run_fpn(parts["neck"], features))


@pytest.mark.parametrize("neck", ["convolution", "involution"])
def test_semantic_fpn(backbone, tmp_path, neck):
    parts = semantic_fpn(backbone, neck)
    auxiliary = {"auxiliary_head.conv_seg.weight": torch.zeros(3, 16, 1, 1)}  # is for the training
    meta = {"CLASSES": tuple(LABELS), "PALETTE": [[1, 2, 3]] * 3, "mmseg_version": "0.12.0"}
    content = torch.load(write(tmp_path / "fpn.pth", backbone, parts, meta=meta), weights_only=True)
    torch.save({**content, "state_dict": {**content["state_dict"], **auxiliary}}, tmp_path / "fpn.pth")
    convert(tmp_path / "fpn.pth", tmp_path / "fpn")

    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "fpn")
    assert list(model.config.id2label.values()) == LABELS and model.config.neck_type == neck
    images = normalize(picture())
    with torch.no_grad():
        expected = segment(parts, features_of(backbone, images))
        torch.testing.assert_close(model(images).logits, expected)
    assert expected.shape == (1, 3, 40, 56) and expected.std() > 0.01
    check_hub_folder(tmp_path / "fpn")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "fpn")
    pixels = processor(np.full((40, 72, 3), 255, dtype=np.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 40, 72) and pixels[0, :, 0, 0].tolist() == pytest.approx(
        [2.2489, 2.4286, 2.64], abs=1e-3
    )
    card = ModelCard.load(tmp_path / "fpn/README.md")
    assert card.data.pipeline_tag == "image-segmentation" and "trained on crops" not in card.text
    assert not card.data.eval_results and "authors' release" not in card.text


def detector(backbone: RedNetBackbone, kind: str, neck: str, head: str | None, count: int = 3) -> nn.ModuleDict:
    torch.manual_seed(2)
    if kind == "retinanet":
        parts = plain.retinanet(SIZES, CHANNELS, count, neck).double().eval()
    else:
        parts = plain.rcnn(SIZES, CHANNELS, count, neck, head, masks=kind == "maskrcnn").double().eval()
    hooks = [
        layer.register_forward_hook(partial(set_scale, name, set()))
        for name, layer in parts.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with torch.no_grad():
        detect(kind, parts, features_of(backbone, normalize(picture())), picture().shape[1:])
    for hook in hooks:
        hook.remove()
    return parts.float().double()  # `load_detector` loads float32


def set_scale(name: str, done: set, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
    """
    Changes a layer at its first call so that its outputs have about the size that those of a trained layer have: with
    random ones, no box would be within the picture.
    """
    if done:
        return None
    done.add(name)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    others = [n for n in range(output.dim()) if n != axis % output.dim()]
    scale = (0.3 if re.search("reg|conv2", name) else 1.5) / output.std()
    layer.weight.mul_(scale)
    if layer.bias is not None:
        center = -2.5 if name.endswith("retina_cls") else 0.0
        layer.bias.copy_((layer.bias - output.mean(others)) * scale + center)
    return layer(inputs[0])


def detect(kind: str, parts: nn.ModuleDict, features: list[torch.Tensor], size: tuple[int, int]) -> tuple:
    if kind == "retinanet":
        return plain.detect_retinanet(parts, features, size)
    boxes, scores, labels = plain.detect_rcnn(parts, features, size)
    if kind == "fasterrcnn":
        return boxes, scores, labels
    pooled = plain.pool(plain.run_fpn(parts["neck"], features), boxes[:MASKS], 14)
    return boxes, scores, labels, plain.outline(parts["roi_head"]["mask_head"], pooled, labels[:MASKS])


@pytest.mark.parametrize("kind, neck, head", ROWS)
def test_detectors(backbone, tmp_path, kind, neck, head):
    """The same boxes, scores, labels and masks, in a picture of which some level has an odd size and some is padded."""
    parts = detector(backbone, kind, neck, head)
    write(tmp_path / "detector.pth", backbone, parts, meta={"dataset_meta": {"classes": LABELS}})
    convert(tmp_path / "detector.pth", tmp_path / "detector")
    assert sorted(os.listdir(tmp_path / "detector")) == ["config.json", "model.safetensors"]
    model, categories = load_detector(tmp_path / "detector")
    assert categories == [{"id": n, "name": name} for n, name in enumerate(LABELS, start=1)]

    model = model.double()
    height, width = picture().shape[1:]
    model.transform.min_size, model.transform.max_size = (height,), width
    with torch.no_grad():
        features = features_of(backbone, normalize(picture()))
        boxes, scores, labels, *masks = detect(kind, parts, features, (height, width))
        (found,) = model([picture()])
    assert len(boxes) > 20 and len(labels.unique()) == 3
    torch.testing.assert_close(found["scores"], scores)
    torch.testing.assert_close(found["boxes"], boxes)
    assert torch.equal(found["labels"], labels + 1)
    if masks:  # before they are put into the picture, which torchvision does to whole pixels
        part, boxes, labels = model.roi_heads, boxes[:MASKS], labels[:MASKS] + 1
        with torch.no_grad():
            levels = model.backbone(normalize(picture()))
            logits = part.mask_predictor(part.mask_head(part.mask_roi_pool(levels, [boxes], [(height, width)])))
        torch.testing.assert_close(logits.sigmoid()[torch.arange(MASKS), labels], masks[0])


def test_features_of_regions_of_all_sizes():
    """Every level of the pyramid has some of them, also across the border of the picture."""
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, 160 // 2**n, 192 // 2**n, dtype=torch.float64) for n in range(4)]
    corners = torch.rand(2, 40, 2, dtype=torch.float64) * 600
    sides = 2 ** (4 + 6 * torch.rand(2, 40, 2, dtype=torch.float64))
    boxes = list(torch.cat([corners, corners + sides], dim=2))
    assert (torch.cat(boxes)[:, 2:] - torch.cat(boxes)[:, :2]).prod(1).sqrt().max() > 500
    found = AlignedRoIAlign([4, 8, 16, 32], 7)(dict(zip("0123", levels)), boxes, [(640, 768)] * 2)
    expected = [plain.pool([level[n : n + 1] for level in levels], box, 7) for n, box in enumerate(boxes)]
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("stride", [4, 8])
def test_anchors(stride):
    """Around multiples of the strides. In torchvision, the 2 rows of stride 64 in 75 pixels would be 37 pixels apart."""
    images = ImageList(torch.zeros(2, 3, 75, 113), [(75, 113), (70, 100)])
    sizes = [(-(-75 // side), -(-113 // side)) for side in (stride * 2**n for n in range(5))]
    features = [torch.zeros(2, 1, *size, dtype=torch.float64) for size in sizes]
    scales = [8.0] if stride == 4 else [4 * 2 ** (n / 3) for n in range(3)]
    layer = ExactAnchors([stride * 2**n for n in range(5)], scales)
    expected = torch.cat(
        [plain.anchors(*size, stride * 2**n, [stride * 2**n * s for s in scales]) for n, size in enumerate(sizes)]
    )
    for anchors in layer(images, features):
        torch.testing.assert_close(anchors, expected)
    assert layer.num_anchors_per_location() == [3 * len(scales)] * 5


def test_categories_of_coco_have_their_numbers(backbone, tmp_path):
    parts = plain.retinanet(SIZES, CHANNELS, 80, "convolution")
    convert(write(tmp_path / "coco.pth", backbone, parts), tmp_path / "coco")
    model, categories = load_detector(tmp_path / "coco")
    assert model.head.classification_head.num_classes == 81 and len(categories) == 80
    assert "does not classify" in describe_samples(tmp_path / "coco")
    numbers = {category["name"]: category["id"] for category in categories}
    assert (numbers["person"], numbers["stop sign"], numbers["toothbrush"]) == (1, 13, 90)


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn", "retinanet", "semantic FPN", "classifier"])
def test_backbone_only(backbone, tmp_path, kind):
    parts = {
        "classifier": lambda: plain.tree(head=plain.tree(fc=nn.Linear(128, 3))),
        "semantic FPN": lambda: plain.tree(
            neck=plain.fpn(SIZES, CHANNELS, "involution"), decode_head=plain.semantic_head(CHANNELS, 16, 3)
        ),
        "retinanet": lambda: plain.retinanet(SIZES, CHANNELS, 3, "involution"),
    }.get(kind, lambda: plain.rcnn(SIZES, CHANNELS, 3, "involution", "involution", masks=kind == "maskrcnn"))()
    convert(write(tmp_path / "a.pth", backbone, parts), tmp_path / "a", backbone_only=True)
    model = AutoModel.from_pretrained(tmp_path / "a")
    assert type(model).__name__ == "RedNetModel"
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in model.state_dict().items())


def cascade(parts: dict) -> None:
    for name in [name for name in parts if name.startswith("roi_head.bbox_head.")]:
        parts[name.replace("bbox_head.", "bbox_head.0.")] = parts.pop(name)


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("fasterrcnn", cascade, r"'roi_head.bbox_head.0.fc_cls.bias', .* rednet does not have this model"),
        (
            "fasterrcnn",
            lambda parts: parts.update({"roi_head.bbox_head.fc_reg.weight": torch.zeros(4, 1024)}),
            r"'roi_head.bbox_head.fc_reg.weight' with shape \[4, 1024\], expected \[12, 1024\] \(fasterrcnn\)",
        ),
        (
            "maskrcnn",
            lambda parts: parts.pop("roi_head.mask_head.upsample.bias"),
            "has no 'roi_head.mask_head.upsample.bias'",
        ),
        (
            "maskrcnn",
            lambda parts: parts.update({"rpn_head.rpn_cls.weight": torch.zeros(6, CHANNELS, 1, 1)}),
            r"'rpn_head.rpn_cls.weight' with shape \[6, 32, 1, 1\], expected \[3, 32, 1, 1\]",
        ),
        (
            "retinanet",
            lambda parts: parts.update({"neck.lateral_convs.0.bn.weight": torch.zeros(CHANNELS)}),
            "has 'neck.lateral_convs.0.bn.weight', expected no such weights",
        ),
        (
            "retinanet",
            lambda parts: parts.update({"neck.fpn_convs.3.conv.weight": torch.zeros(CHANNELS, CHANNELS, 3, 3)}),
            r"'neck.fpn_convs.3.conv.weight' with shape \[32, 32, 3, 3\], expected \[32, 128, 3, 3\]",
        ),
        (
            "retinanet",
            lambda parts: parts.update({"bbox_head.retina_reg.weight": torch.zeros(24, CHANNELS, 3, 3)}),
            "with 27 and 24 channels, expected a multiple of 9 and 36, for 9 anchors at each position",
        ),
        (
            "retinanet",
            lambda parts: parts["bbox_head.retina_cls.bias"].fill_(torch.nan),
            "'bbox_head.retina_cls.bias' with 27 of 27 values NaN",
        ),
        (
            "semantic FPN",
            lambda parts: parts.update({"decode_head.conv_seg.weight": torch.zeros(1, 16, 1, 1)}),
            "with 1 output, .* expected one output for each class",
        ),
        (
            "semantic FPN",
            lambda parts: parts.pop("decode_head.scale_heads.3.4.conv.weight"),
            r"has no 'decode_head.scale_heads.3.4.conv.weight' \(Semantic FPN\)",
        ),
    ],
)
def test_what_differs_is_named(backbone, tmp_path, monkeypatch, kind, change, message):
    """And the message says how to get the backbone."""
    monkeypatch.chdir(tmp_path)
    parts = plain.retinanet(SIZES, CHANNELS, 3, "convolution") if kind == "retinanet" else None
    if kind == "semantic FPN":
        head = plain.semantic_head(CHANNELS, 16, 3)
        parts = plain.tree(neck=plain.fpn(SIZES, CHANNELS, "convolution"), decode_head=head)
    parts = parts or plain.rcnn(SIZES, CHANNELS, 3, "involution", "convolution", masks=kind == "maskrcnn")
    content = torch.load(write(tmp_path / "a.pth", backbone, parts), weights_only=True)
    change(content["state_dict"])
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as error:
        convert("a.pth", "folder")
    assert "--backbone_only converts" in str(error.value)
    assert os.listdir() == ["a.pth"]


def test_segmentation_models_with_another_head_are_refused(backbone, tmp_path):
    """For example UPerNet."""
    head = plain.tree(bottleneck=plain.convolution(128, 16), conv_seg=nn.Conv2d(16, 3, 1))
    write(tmp_path / "upernet.pth", backbone, plain.tree(decode_head=head))
    with pytest.raises(ValueError, match="'decode_head.bottleneck.conv.bias', .* rednet does not have this model"):
        convert(tmp_path / "upernet.pth", tmp_path / "upernet")


def test_a_detector_is_not_pushed_by_the_converter(backbone, tmp_path):
    write(tmp_path / "a.pth", backbone, plain.retinanet(SIZES, CHANNELS, 3, "convolution"))
    with pytest.raises(ValueError, match="hf upload user/owls"):
        convert(tmp_path / "a.pth", tmp_path / "a", repository="user/owls")
    assert not (tmp_path / "a").exists()
