"""torchvision's detectors on RedNet: trained and run on real pictures."""

import json
import subprocess
import sys

import onnxruntime
import pytest
import torch
from rednet import RedNetBackbone, RedNetConfig, RedNetForImageClassification, count_macs, count_parameters
from rednet.detection import (
    fasterrcnn_rednet_fpn,
    load_detector,
    maskrcnn_rednet_fpn,
    retinanet_rednet_fpn,
    save_detector,
    script_detector,
)
from rednet.hub import check_hub_folder
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, masks_to_boxes

from hub_server import HubServer
from involution import Involution2d
from pictures import coins


ROWS = [
    (maker, neck, head)
    for maker in (fasterrcnn_rednet_fpn, maskrcnn_rednet_fpn, retinanet_rednet_fpn)
    for neck, head in (("convolution", "convolution"), ("involution", "convolution"), ("involution", "involution"))
    if maker is not retinanet_rednet_fpn or head == "convolution"
]


def small_detector(maker, neck="convolution", head="convolution", num_channels=3, **options):
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    arguments = {"neck": neck, "head": head}
    if maker is retinanet_rednet_fpn:
        del stages[0], arguments["head"]
    config = RedNetConfig(
        num_channels=num_channels,
        embedding_size=32,
        hidden_sizes=[64, 64, 128, 128],
        depths=[1, 1, 1, 1],
        out_features=stages,
    )
    options = {"min_size": 150, "max_size": 256, "channels": 32, **arguments, **options}
    return maker(RedNetBackbone(config), 2, **options)


def pictures_and_targets() -> tuple[list[torch.Tensor], list[dict]]:
    """Two pictures of six coins each, with a box and a mask around every coin."""
    picture, numbers = coins()
    pictures, targets = [], []
    for columns in (slice(0, 185), slice(184, 384)):
        part = numbers[:150, columns]
        masks = torch.stack([part == n for n in part.unique() if n > 0 and (part == n).sum() == (numbers == n).sum()])
        boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
        labels = torch.ones(len(boxes), dtype=torch.int64)
        pictures.append(picture[:, :150, columns])
        targets.append({"boxes": boxes, "labels": labels, "masks": masks.byte()})
    return pictures, targets


def normalize_as_trained(model, pictures: list[torch.Tensor]) -> None:
    """
    Gives the backbone BatchNorm weights and statistics like those of a trained one. Its statistics are frozen, and
    without any, involutions, which multiply activations by activations, blow up. A weight of zero, with which a block
    starts, would hide the gradients of what comes before it.
    """
    body = model.backbone.body
    for module in body.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
            module.momentum = 1.0
    with torch.no_grad():
        body.train()(model.transform(pictures)[0].tensors)


@pytest.mark.parametrize("maker, neck, head", ROWS)
def test_trains_and_detects(maker, neck, head):
    model = small_detector(maker, neck, head)
    pictures, targets = pictures_and_targets()
    normalize_as_trained(model, pictures)
    statistics = {name: value.clone() for name, value in model.backbone.body.named_buffers()}
    losses = model.train()(pictures, targets)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.body.embedder.", "backbone.body.encoder.stages.0."))
        assert parameter.requires_grad is not frozen, name
        assert frozen or (parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0), name
    for name, value in model.backbone.body.named_buffers():
        assert torch.equal(value, statistics[name]), name

    # Random weights may be sure that there is nothing: what they find at all is wanted here.
    (model if maker is retinanet_rednet_fpn else model.roi_heads).score_thresh = 0.0
    with torch.no_grad():
        for picture, found in zip(pictures, model.eval()(pictures), strict=True):
            assert found["boxes"].shape == (len(found["scores"]), 4)
            assert found["boxes"].isfinite().all() and (found["boxes"] >= 0).all()
            assert len(found["boxes"]) > 0
            if maker is maskrcnn_rednet_fpn:
                assert found["masks"].shape == (len(found["scores"]), 1, *picture.shape[1:])


@pytest.mark.parametrize("maker, neck, head", ROWS)
def test_macs_are_those_of_a_real_pass(maker, neck, head):
    """Once the numbers of regions are known, which a real pass finds out."""
    model = small_detector(maker, neck, head)
    regions, sizes = {"proposals": 0, "detections": 0}, []
    model.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[2:]))
    for name, part in (("proposals", "box_head"), ("detections", "mask_head")):
        if layers := getattr(getattr(model, "roi_heads", None), part, None):
            layers.register_forward_hook(lambda _, inputs, __, name=name: regions.update({name: len(inputs[0])}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(pictures_and_targets()[0][:1])
    counted = dict(regions)
    assert count_macs(model, *sizes[0], **counted) == counter.get_total_flops() // 2


@pytest.mark.parametrize("maker", [fasterrcnn_rednet_fpn, maskrcnn_rednet_fpn])
def test_pictures_with_nothing_in_them(maker):
    """In training there may be no region for the mask head, and in inference none for the box head."""
    model = small_detector(maker, "involution", "involution", box_score_thresh=1.0)
    pictures = [torch.zeros(3, 150, 185)]
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 150, 185, dtype=torch.uint8),
    }
    sum(model.train()(pictures, [nothing]).values()).backward()
    with torch.no_grad():
        assert len(model.eval()(pictures)[0]["boxes"]) == 0


def test_involutions_are_where_the_paper_has_them():
    def involutions(*arguments):
        model = small_detector(*arguments)
        return [name for name, module in model.named_modules() if isinstance(module, Involution2d)]

    neck = [f"backbone.fpn.layer_blocks.{n}" for n in range(4)]
    mask_head = [f"roi_heads.mask_head.{n}.0" for n in range(4)]
    assert involutions(maskrcnn_rednet_fpn) == []
    assert involutions(retinanet_rednet_fpn, "involution") == neck[:3]
    assert involutions(fasterrcnn_rednet_fpn, "involution", "involution") == [*neck, "rpn.head.conv.0.0"]
    expected = [*neck, "rpn.head.conv.0.0", *mask_head]
    assert involutions(maskrcnn_rednet_fpn, "involution", "involution") == expected


@pytest.mark.parametrize("trainable_layers", range(6))
def test_freezes_from_the_stem_on(trainable_layers):
    model = small_detector(fasterrcnn_rednet_fpn, trainable_layers=trainable_layers)
    body = model.backbone.body
    layers = [body.embedder, *body.encoder.stages]
    trained = [count_parameters(layer, trainable_only=True) == count_parameters(layer) for layer in layers]
    assert trained == [n >= 5 - trainable_layers for n in range(5)]
    assert [layer.training for layer in layers] == trained and model.backbone.fpn.training
    norms = [module for module in body.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.training for norm in norms} == {trainable_layers == 5}


@pytest.mark.parametrize(
    "options, words",
    [
        ({"neck": "attention"}, "neck is 'attention'"),
        ({"head": "none"}, "head is 'none'"),
        ({"trainable_layers": 6}, "trainable_layers is 6, expected 0 to 5"),
        ({"style": "detectron"}, "style is 'detectron', expected 'torchvision' or 'mmdetection'"),
    ],
)
@pytest.mark.parametrize("maker", [fasterrcnn_rednet_fpn, maskrcnn_rednet_fpn])
def test_refuses(maker, options, words):
    with pytest.raises(ValueError, match=words):
        small_detector(maker, **options)


def test_refuses_a_backbone_of_other_stages():
    backbone = RedNetBackbone(RedNetConfig(depths=[1, 1], hidden_sizes=[64, 64], embedding_size=32))
    with pytest.raises(ValueError, match=r"out_features=\['stage2'\], expected \['stage2', 'stage3', 'stage4'\]"):
        retinanet_rednet_fpn(backbone, 2)


@pytest.mark.parametrize("maker", [fasterrcnn_rednet_fpn, maskrcnn_rednet_fpn, retinanet_rednet_fpn])
def test_numbers_of_channels_must_fit(maker):
    """torchvision would make three channels of one."""
    stages = ["stage1", "stage2", "stage3", "stage4"][maker is retinanet_rednet_fpn :]
    config = {"embedding_size": 32, "hidden_sizes": [64, 64, 128, 128], "depths": [1, 1, 1, 1], "out_features": stages}
    backbone = RedNetBackbone(RedNetConfig(num_channels=1, **config))
    with pytest.raises(ValueError, match="num_channels=1, expected 3"):
        maker(backbone, 2)
    model = maker(backbone, 2, image_mean=[0.5], image_std=[0.5], min_size=64, max_size=64).eval()
    with torch.no_grad():
        assert model([torch.zeros(1, 64, 64)])[0]["boxes"].shape[1] == 4


CATEGORIES = [{"id": 7, "name": "coin"}]


@pytest.fixture
def saved(tmp_path):
    """The folder of a small detector."""
    model = small_detector(fasterrcnn_rednet_fpn, "involution", "involution")
    options = {"num_classes": 2, "neck": "involution", "head": "involution", "channels": 32}
    save_detector(tmp_path / "saved", model, "fasterrcnn", options, CATEGORIES)
    return tmp_path / "saved"


def change(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_loads_from_a_folder_and_from_the_hub(saved, tmp_path):
    """By the same call, with huggingface_hub as it is, and a Hub on this machine."""
    code = """
import sys, torch, huggingface_hub
from rednet.detection import load_detector
folder = sys.argv[1]
huggingface_hub.create_repo("user/coins")
huggingface_hub.upload_folder(repo_id="user/coins", folder_path=folder)
(one, categories), (other, same) = load_detector(folder), load_detector("user/coins")
assert categories == same == [{"id": 7, "name": "coin"}] and not other.training
assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
try:
    load_detector("user/none")
except OSError as error:
    assert "user/none" in str(error), error
    print("named")
"""
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        command = [sys.executable, "-c", code, str(saved)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "named\n", done.stderr


def test_a_detector_is_not_pushed_as_a_model(saved):
    with pytest.raises(ValueError, match="is a detector, which has no card: push it with `hf upload user/name"):
        check_hub_folder(saved)


def test_folders_that_are_no_detectors_are_named(saved, tmp_path):
    RedNetForImageClassification(small_detector(fasterrcnn_rednet_fpn).backbone.body.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no detector: config.json has no entry"):
        load_detector(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no model: config.json is missing"):
        load_detector(tmp_path / "empty")
    with pytest.raises(OSError, match="nowhere/at/all"):
        load_detector("nowhere/at/all")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"detector": "yolo"}, "detector 'yolo', expected one of .*fasterrcnn"),
        ({"detector": ["fasterrcnn"]}, r"detector \['fasterrcnn'\], expected one of"),
        ({"backbone": None}, "backbone None, expected a dict"),
        ({"backbone": {"depths": "many"}}, "config.json describes no detector: .*depths"),
        ({"backbone": {"depths": [1]}}, "config.json describes no detector: .*depths"),
        ({"options": {"num_classes": 2, "neck": "none"}}, "config.json describes no detector: neck is 'none'"),
        ({"options": {"num_classes": 2, "trainable_layers": 9}}, "describes no detector: trainable_layers is 9"),
        ({"options": {}}, "config.json describes no detector: .*num_classes"),
        ({"options": {"num_classes": 2}}, "model.safetensors does not match config.json: [0-9]+ weights differ"),
        ({"categories": "coin"}, "categories 'coin', expected a list"),
    ],
)
def test_wrong_configurations_are_named(saved, values, words):
    change(saved, **values)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        load_detector(saved)


def test_damaged_files_are_named(saved):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        load_detector(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        load_detector(saved)
    for text in ('{"detector": "faster', '["fasterrcnn"]'):
        (saved / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged"):
            load_detector(saved)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:.*in scripting:UserWarning")
@pytest.mark.parametrize(
    "maker, style",  # Mask R-CNN has all of Faster R-CNN
    [
        (maskrcnn_rednet_fpn, "torchvision"),
        (maskrcnn_rednet_fpn, "mmdetection"),
        (retinanet_rednet_fpn, "torchvision"),
        (retinanet_rednet_fpn, "mmdetection"),
    ],
)
def test_scripts(maker, style, tmp_path):
    """The file finds what the detector finds, in pictures of both sizes; the detector is as it was. Of random weights
    some boxes are between two levels of the pyramid, or have the score of another one: which they take is chance."""
    heads = ["involution"] * (maker is not retinanet_rednet_fpn)
    model = small_detector(maker, "involution", *heads, style=style).double()
    pictures = [picture.double() for picture in pictures_and_targets()[0]]
    normalize_as_trained(model, pictures)
    (model if maker is retinanet_rednet_fpn else model.roi_heads).score_thresh = 0.0
    script_detector(model).save(tmp_path / "detector.pt")
    assert not any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    scripted, model = torch.jit.load(tmp_path / "detector.pt"), model.eval()
    for picture in pictures:
        with torch.no_grad():
            _, (found,) = scripted([picture])
            (expected,) = model([picture])
        assert len(expected["boxes"]) > 0 and expected.keys() == found.keys()
        assert ((found["boxes"] - expected["boxes"]).abs().amax(1) < 1e-3).double().mean() > 0.9
        assert ((found["scores"] - expected["scores"]).abs() < 1e-5).double().mean() > 0.9


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_scripts_a_detector_of_gray_pictures():
    model = small_detector(retinanet_rednet_fpn, num_channels=1, image_mean=[0.5], image_std=[0.25]).eval()
    picture = pictures_and_targets()[0][0].mean(0, keepdim=True)
    with torch.no_grad():
        _, (found,) = script_detector(model)([picture])
        (expected,) = model([picture])
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["boxes"], expected["boxes"])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_exports_by_tracing_as_torchvisions_detectors(tmp_path):
    """As in `test_scripts`, with a picture of another size than the one that was recorded."""
    model = small_detector(fasterrcnn_rednet_fpn, "involution", "involution", box_score_thresh=0.0)
    pictures = pictures_and_targets()[0]
    normalize_as_trained(model, pictures)
    axes = {"dynamic_axes": {"picture": {1: "height", 2: "width"}}}
    path = tmp_path / "detector.onnx"
    torch.onnx.export(
        model.eval(), ([pictures[0]],), path, input_names=["picture"], **axes, dynamo=False, opset_version=17
    )
    session = onnxruntime.InferenceSession(path)
    for picture in pictures:
        boxes, _, scores = session.run(None, {"picture": picture.numpy()})
        with torch.no_grad():
            (expected,) = model([picture])
        assert len(boxes) == len(expected["boxes"]) > 0
        assert ((torch.from_numpy(boxes) - expected["boxes"]).abs().amax(1) < 0.1).double().mean() > 0.9
        assert ((torch.from_numpy(scores) - expected["scores"]).abs() < 1e-4).double().mean() > 0.9


def test_finds_and_outlines_the_coins_it_was_shown():
    """Mask R-CNN with involutions in backbone, neck and heads, from random weights in 120 steps of one picture."""
    model = small_detector(
        maskrcnn_rednet_fpn,
        "involution",
        "involution",
        trainable_layers=5,
        # Anchors as large as coins, and fewer regions than for the crowds of COCO.
        rpn_anchor_generator=AnchorGenerator([(24 * 2**n,) for n in range(5)], [(0.5, 1.0, 2.0)] * 5),
        rpn_fg_iou_thresh=0.6,
        rpn_batch_size_per_image=64,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=48,
        box_positive_fraction=0.5,
    )
    pictures, targets = (both[:1] for both in pictures_and_targets())
    assert [len(target["boxes"]) for target in targets] == [6]
    steps, rate = 120, 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        loss = sum(model(pictures, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)  # the paper's, with involutions in neck and head
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        found = model.eval()(pictures)
    for target, result in zip(targets, found, strict=True):
        sure = result["scores"] > 0.5
        best, match = box_iou(target["boxes"], result["boxes"][sure]).max(1)
        masks, outlines = target["masks"].bool(), result["masks"][sure][match, 0] > 0.5
        overlap = (masks & outlines).sum((1, 2)) / (masks | outlines).sum((1, 2))
        assert len(match.unique()) == 6 and sure.sum() <= 7, "every coin has a box of its own"
        assert best.min() > 0.5 and best.mean() > 0.8  # 0.5 counts as found; how well differs with rounding
        assert overlap.min() > 0.5 and overlap.mean() > 0.8
