"""Checks of images and masks before the training."""

import io

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import ExifTags, Image
from rednet import RedNetConfig
from rednet.training.data.segmentation import load_pairs
from rednet.training.data.segmentation_checks import check_pairs
from rednet.training.options.scripts import SegmentationConfig

from segmentation_files import CLASSES, small_pairs


def stored(picture: Image.Image, name: str = "some.png") -> dict:
    content = io.BytesIO()
    picture.save(content, "TIFF" if picture.mode == "F" else "PNG")
    return {"bytes": content.getvalue(), "path": name}


def check(config: SegmentationConfig, num_labels: int = 3, **more) -> None:
    check_pairs(*load_pairs(config), config, RedNetConfig(num_labels=num_labels, **more))


def problems_of(config: SegmentationConfig, num_labels: int = 3, **more) -> list[str]:
    with pytest.raises(ValueError) as raised:
        check(config, num_labels, **more)
    first, *lines = str(raised.value).splitlines()
    assert first == f"the data set has {len(lines)} problem{'s' * (len(lines) > 1)}:"
    return lines


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks_of_integers_are_good(tmp_path, caplog, mode):
    """Of a palette the numbers count, not the colors."""
    masks = [
        Image.fromarray(np.array(values, np.uint16 if "I" in mode else np.uint8).reshape(2, 2)) for values in CLASSES
    ]
    if mode == "P":
        for mask in masks:
            mask.putpalette([9, 9, 9] * 256)
    check(small_pairs(tmp_path, masks))
    assert not caplog.records


def test_masks_of_one_bit_are_good(tmp_path):
    check(small_pairs(tmp_path, [Image.fromarray(np.array([[True, False]] * 2))]), num_labels=2)


def test_two_classes_saved_as_0_and_255(tmp_path):
    """Whoever trains on these reaches 100 % of class 0."""
    training, validation = problems_of(small_pairs(tmp_path, [[0, 255, 0, 255], [0, 0, 0, 255]]), num_labels=2)
    assert "split train: of 8 pixels in 2 masks, 3 (37.5%) are not labeled (stored as 255)" in training
    assert "all others are of class 0 (LABEL_0): no pixel is of class 1 (LABEL_1)" in training
    assert "expected the values 0 to 1 in masks" in training and "split validation" in validation


@pytest.mark.parametrize(
    "masks, options, words",
    [
        ([[255] * 4] * 2, {}, "8 (100.0%) are not labeled (stored as 255): none has a class"),
        ([[0, 1, 1, 0]] * 2, {}, "0 (0.0%) are not labeled (stored as 255), and none is of class 2 (LABEL_2)"),
        ([[0, 1, 2, 0]] * 2, {"do_reduce_labels": True}, "none is of class 2 (LABEL_2); expected the values 1 to 3"),
        ([[1, 2, 3, 255]] * 2, {}, "holds [3], but the model has 3 classes, which are [0, 2] in masks (255: not"),
        ([[0, 1, 2, 4]] * 2, {"do_reduce_labels": True}, "holds [4], but the model has 3 classes, which are [1, 3]"),
        ([Image.new("RGB", (2, 2))] * 2, {}, "is of the mode RGB, expected one integer for each pixel, its class"),
        ([Image.new("RGBA", (2, 2))], {}, "is of the mode RGBA"),
        ([Image.new("LA", (2, 2))], {}, "is of the mode LA"),
        ([Image.new("F", (2, 2))], {}, "is of the mode F"),
        ([Image.new("L", (2, 3))], {}, "is 2 x 3, expected the size of the picture, which is 2 x 2"),
    ],
)
def test_masks_that_cannot_be_trained_on_are_named(tmp_path, masks, options, words):
    config = small_pairs(tmp_path, masks)
    for name, value in options.items():
        setattr(config, name, value)
    assert words in problems_of(config)[0]


def test_files_that_cannot_be_trained_on_are_named(tmp_path):
    """All of them, from their headers; in a JPEG file even a mask of few values gets others at its edges."""
    config = small_pairs(tmp_path, CLASSES)
    mask = Image.fromarray(np.array(CLASSES[0], np.uint8).reshape(2, 2))
    (tmp_path / "annotations/0.png").unlink()
    mask.save(tmp_path / "annotations/0.jpg")
    (tmp_path / "annotations/1.png").write_text("no picture")
    Image.new("I;16", (2, 2)).save(tmp_path / "images/2.png")
    lines = problems_of(config)
    assert len(lines) == 6 and "annotations/0.jpg of " in lines[0] and "is a JPEG file" in lines[0]
    assert "the mask " in lines[1] and "annotations/1.png cannot be used: it cannot be read" in lines[1]
    assert "images/2.png cannot be used: its pixels are of the mode I;16" in lines[2]


def test_masks_and_pictures_that_are_turned(tmp_path, caplog):
    """A mask that was drawn on the stored pixels of a turned picture has another size, unless both are squares."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("wide", "square"):
        (tmp_path / name).mkdir()
    wide = small_pairs(tmp_path / "wide", [Image.new("L", (3, 2))], (3, 2), exif=exif)
    line = problems_of(wide)[0]
    assert "is 3 x 2, expected the size of the picture, which is 2 x 3 (stored as 3 x 2, and turned" in line
    assert "its EXIF orientation 6)" in line and "remove the EXIF orientation" in line
    check(small_pairs(tmp_path / "square", CLASSES, exif=exif))
    assert "3 pictures have an EXIF orientation that does not show" in caplog.records[0].getMessage()


def test_rare_classes_are_no_error_in_a_sample(tmp_path, caplog):
    """Nor where only some of the pictures are trained on; a mask without labels is one among others."""
    config = small_pairs(tmp_path, [[0, 1, 0, 1], [255] * 4, [1, 1, 0, 0]])
    config.max_train_samples = 3
    check(config)
    messages = [record.getMessage() for record in caplog.records]
    assert "none is of class 2 (LABEL_2)" in messages[0] and "1 of 3 masks have no labeled pixel" in messages[1]
    (tmp_path / "background").mkdir()
    background = small_pairs(tmp_path / "background", [[0] * 4] * 301)
    check(background, num_labels=2)  # one mask was not looked at
    assert "301" not in (message := caplog.records[-1].getMessage()) and "none is of class 1 (LABEL_1)" in message
    config.max_train_samples = None
    assert "none is of class 2 (LABEL_2)" in problems_of(config)[0]


def test_classes_that_cannot_be_learned(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    assert "split train has no pictures" in problems_of(small_pairs(tmp_path / "empty", []))[0]
    config = small_pairs(tmp_path, [[0] * 4])
    assert "the model has 1 class, expected at least 2" in problems_of(config, num_labels=1)[0]
    (tmp_path / "on purpose").mkdir()
    check(small_pairs(tmp_path / "on purpose", [[0, 1, 2, 2]]), semantic_loss_ignore_index=0)
    assert "class 0 (LABEL_0) is semantic_loss_ignore_index" in caplog.records[0].getMessage()


def test_bytes_and_streams_are_looked_at(tmp_path):
    """Masks in parquet files; a stream is read in its order."""
    rows = [{"image": stored(Image.new("RGB", (2, 2))), "label": stored(Image.new("L", (2, 2), 7), "seven.png")}]
    features = Features(dict.fromkeys(("image", "label"), ImageColumn()))
    Dataset.from_list(rows * 2, features).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        config = SegmentationConfig(
            dataset_name=str(tmp_path), validation_split="train", label_column_name="label", streaming=streaming
        )
        lines = problems_of(config)
        assert len(lines) == 4 and all("the mask seven.png of some.png holds [7]" in line for line in lines)
