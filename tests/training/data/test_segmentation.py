"""Pairs of image and mask, and their augmentation."""

import io
import os

import pytest
import torch
from PIL import Image
from rednet import RedNetConfig
from rednet.training.data.segmentation import PairReader, PairTransform, load_pairs
from rednet.training.options.scripts import SegmentationConfig
from torchvision import tv_tensors


def test_picture_and_mask_change_alike():
    """An image whose gray value says the class: away from edges it still does, and what was added has no label."""
    mask = torch.arange(8).repeat_interleave(12)[None, :].expand(80, 96) + 8 * (torch.arange(80) // 20)[:, None]
    image = tv_tensors.Image((7 * mask).byte().expand(3, -1, -1))
    config = SegmentationConfig(crop_size=[64, 100], photometric_distortion=False, image_mean=[1.0, 1.0, 1.0])
    transform, sizes, mirrored = PairTransform(config, 255), set(), set()
    for key in range(20):
        changed, classes = transform(image, tv_tensors.Mask(mask.byte()), (key,))
        again = transform(image, tv_tensors.Mask(mask.byte()), (key,))
        assert torch.equal(changed, again[0]) and torch.equal(classes, again[1])
        assert changed.shape == (3, 64, 100) and classes.shape == (64, 100)
        labeled = classes != 255
        assert (changed[0][~labeled] == 255).all()
        off = (changed[0].int() - 7 * classes.int()).abs()[labeled]
        assert (off <= 3).float().mean() > 0.75
        sizes.add(int(labeled.sum()))
        row = classes[labeled.any(1)][0]
        mirrored.add(bool((row[row != 255].int().diff() < 0).any()))
    assert len(sizes) > 3 and mirrored == {True, False}


def test_masks_that_count_from_one():
    """ADE20K: 0 is not labeled."""
    picture, mask = (Image.new(mode, (2, 2)) for mode in ("RGB", "L"))
    mask.putdata([0, 1, 4, 255])
    row = {"image": stored(picture), "label": stored(mask)}
    config = RedNetConfig(num_labels=4)
    _, classes = PairReader(config, SegmentationConfig(do_reduce_labels=True))(row)
    assert classes.flatten().tolist() == [255, 0, 3, 255]


def test_masks_of_one_bit_are_padded_with_what_is_not_labeled():
    config = SegmentationConfig(crop_size=[8, 8], random_scale=[1, 1], random_flip=0)
    row = {"image": stored(Image.new("RGB", (4, 4))), "label": stored(Image.new("1", (4, 4), 1))}
    image, mask = PairReader(RedNetConfig(num_labels=2), config)(row)
    _, padded = PairTransform(config, 255)(image, mask, (0,))
    assert padded.shape == (8, 8) and (padded == 1).sum() == 16 and (padded == 255).sum() == 48


def stored(picture: Image.Image, name: str = "some.png") -> dict:
    content = io.BytesIO()
    picture.save(content, "TIFF" if picture.mode == "F" else "PNG")
    return {"bytes": content.getvalue(), "path": name}


@pytest.mark.parametrize(
    "mask, words",
    [
        (Image.new("L", (8, 6), 4), ["mask.png", "[4]", "4 classes"]),
        (Image.new("L", (6, 8)), ["mask.png", "(8, 6)", "(6, 8)"]),
        (Image.new("RGB", (8, 6)), ["mask.png", "(6, 8, 3)"]),
        (Image.new("LA", (8, 6)), ["mask.png", "(6, 8, 2)"]),
        (Image.new("F", (8, 6)), ["mask.png", "float32", "expected one integer"]),
    ],
)
def test_bad_masks_are_named(mask, words):
    read = PairReader(RedNetConfig(num_labels=4), SegmentationConfig())
    with pytest.raises(ValueError) as raised:
        read({"image": stored(Image.new("RGB", (8, 6))), "label": stored(mask, "mask.png")})
    assert all(word in str(raised.value) for word in words)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="images: there is no such folder"):
        load_pairs(SegmentationConfig(train_dir=str(tmp_path)))
    for name in ("images/lonely.jpg", "images/twice.jpg", "images/twice.png", "annotations/twice.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "annotations/aachen").mkdir()
    (tmp_path / "annotations/maskless.png").touch()
    (tmp_path / os.fsdecode(b"images/\xff.png")).touch()
    with pytest.raises(ValueError) as raised:
        load_pairs(SegmentationConfig(train_dir=str(tmp_path)))
    assert str(raised.value).splitlines() == [
        "the data set has 5 problems:",
        f"- {tmp_path}/images/twice.png has the name of {tmp_path}/images/twice.jpg: expected one file of each name",
        rf"- '{tmp_path}/images/\udcff.png' has a name that is not UTF-8: rename it",
        f"- {tmp_path}/annotations/aachen is a folder, expected files alone in {tmp_path}/annotations",
        f"- {tmp_path}/images/lonely.jpg has no mask lonely in annotations",
        f"- {tmp_path}/annotations/maskless.png has no picture maskless in images",
    ]
