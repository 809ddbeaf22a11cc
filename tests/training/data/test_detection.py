"""Batches for detectors, and checks of their images."""

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import ExifTags, Image
from rednet.training.data.coco import categories_of, objects_of
from rednet.training.data.detection import TrainingPictures, check_pictures, pictures
from rednet.training.options.scripts import DetectionConfig
from torchvision.ops import masks_to_boxes

from coco_files import annotations, read_annotations, rectangle


def test_targets(tmp_path):
    """Labels in the order of the ids, boxes cut at the border, no crowds, no pictures without objects."""
    objects = [rectangle(1, 0, 31, 10, 20, 30, 40), rectangle(2, 0, 7, 80, 70, 40, 40)]
    objects += [rectangle(3, 0, 7, 0, 0, 9, 9, iscrowd=1), rectangle(4, 1, 7, 0, 0, 9, 9, iscrowd=1)]
    objects += [rectangle(5, 2, 7, 5, 5, 0, 9), rectangle(6, 3, 7, 100, 5, 9, 9)]
    truth = read_annotations(annotations(tmp_path, objects, images=5), masks=True)
    assert [len(objects_of(truth, number)) for number in range(5)] == [2, 0, 0, 0, 0]
    images = pictures(truth, str(tmp_path), for_training=True)
    assert list(images["id"]) == [0] and len(pictures(truth, str(tmp_path), for_training=False)) == 5
    Image.new("RGB", (100, 90)).save(tmp_path / "0.png")
    for flip in (0.0, 1.0):
        config = DetectionConfig(detector="maskrcnn", random_flip=flip)
        batches = TrainingPictures(images, categories_of(truth), config)
        (target,) = batches.__getitems__([((0, 0), 0)])["targets"]
        boxes = torch.tensor([[10.0, 20, 40, 60], [80, 70, 100, 90]])
        if flip:
            boxes[:, [0, 2]] = 100 - boxes[:, [2, 0]]
        assert torch.equal(target["boxes"], boxes) and target["labels"].tolist() == [2, 1]
        assert torch.equal(masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1]), boxes)


def test_pictures_that_do_not_fit_are_named_together(tmp_path, caplog):
    """From their headers alone: the pixels of none of these files are there."""
    images = [(100, 90), (90, 100), (100, 90), (90, 100), (100, 90), (100, 90), (100, 90)]
    names = ["right.jpg", "other.png", "deep.png", "turned.jpg", "none.jpg", "text.jpg", "half_turn.jpg"]
    quarter, half = Image.Exif(), Image.Exif()
    quarter[ExifTags.Base.Orientation], half[ExifTags.Base.Orientation] = 6, 3
    Image.new("RGB", (100, 90)).save(tmp_path / names[0])
    Image.new("RGB", (100, 90)).save(tmp_path / names[1])
    Image.new("I;16", (100, 90)).save(tmp_path / names[2])
    Image.new("RGB", (90, 100)).save(tmp_path / names[3], exif=quarter)
    (tmp_path / names[5]).write_text("no picture")
    Image.new("RGB", (100, 90)).save(tmp_path / names[6], exif=half)
    for name in names:
        if (tmp_path / name).exists():
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(content[: content.find(b"IDAT") + 8 if b"IDAT" in content else -100])
    rows = [
        {"image": {"bytes": None, "path": str(tmp_path / name)}, "width": width, "height": height}
        for name, (width, height) in zip(names, images)
    ]
    features = Features({"image": ImageColumn(decode=False), "width": Value("int64"), "height": Value("int64")})
    data = Dataset.from_list(rows, features)
    with pytest.raises(ValueError) as raised:
        check_pictures(data, data.select([0]))
    lines = str(raised.value).splitlines()
    assert lines[0] == "the data set has 5 problems:"
    assert lines[1].endswith("other.png is 100 x 90, the annotations say 90 x 100")
    assert "deep.png cannot be used: its pixels are of the mode I;16" in lines[2]
    assert "turned.jpg is 100 x 90 (stored as 90 x 100, and turned" in lines[3]
    assert "EXIF orientation 6), the annotations say 90 x 100. " in lines[3] and "remove the EXIF" in lines[3]
    assert lines[4].endswith("none.jpg cannot be used: there is no such file")
    assert "text.jpg cannot be used: it cannot be read" in lines[5]

    check_pictures(data.select([0]), data.select([6]))
    (record,) = caplog.records
    assert "1 pictures have an EXIF orientation" in record.getMessage() and "half_turn.jpg" in record.getMessage()
