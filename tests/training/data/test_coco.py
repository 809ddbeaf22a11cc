"""Reading and checking annotations in COCO's format."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from rednet.training.data.coco import (
    check_annotations,
    load_annotations,
    make_index,
    objects_of,
    run_lengths,
)
from rednet.training.data.detection import detection_loaders
from rednet.training.metrics.detection import average_precision
from rednet.training.options.scripts import DetectionConfig

from coco_files import CATEGORIES, annotations, read_annotations, rectangle


MASK = np.asfortranarray(np.arange(90 * 100).reshape(90, 100) % 7 < 3, np.uint8)
COMPRESSED = {"size": [90, 100], "counts": coco_masks.encode(MASK)["counts"].decode()}
COUNTS = run_lengths(COMPRESSED["counts"])


def valid_annotations(folder: Path) -> str:
    (folder / "valid").mkdir()
    return str(annotations(folder / "valid", [rectangle(1, 0, 7, 1, 1, 9, 9)]))


def test_run_lengths_are_those_of_the_mask():
    """Written by pycocotools; the definition is the mask itself, column by column."""
    pixels = np.concatenate([np.full(count, n % 2) for n, count in enumerate(COUNTS)])
    assert np.array_equal(pixels.reshape(100, 90).T, MASK)
    assert run_lengths(COUNTS) == COUNTS


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"category_id": 8}, "category_id 8, which none of the categories has"),
        ({"category_id": "7"}, "category_id '7', which"),
        ({"category_id": None}, "category_id None, which"),
        ({"category_id": [7]}, r"category_id \[7\], which"),
        ({"image_id": 9}, "image_id 9, which none of the images has"),
        ({"image_id": "0"}, "image_id '0', which"),
        ({"bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\], expected \[x, y, width, height\]"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": [1, 2, float("nan"), 3]}, r"bbox \[1, 2, nan, 3\]"),
        ({"bbox": [1, 2, float("inf"), 3]}, r"bbox \[1, 2, inf, 3\]"),
        ({"bbox": [1, 2, -3, 3]}, r"bbox \[1, 2, -3, 3\]"),
        ({"bbox": ["1", "2", "3", "4"]}, "bbox .*'4'"),
        ({"bbox": {"x": 1}}, "bbox {'x': 1}"),
        ({"iscrowd": 2}, "iscrowd 2, expected 0 or 1"),
        ({"iscrowd": "0"}, "iscrowd '0'"),
        ({"area": -5}, "area -5, expected a number of pixels"),
        ({"area": "9"}, "area '9'"),
        ({"area": float("nan")}, "area nan"),
        ({"segmentation": []}, "no segmentation, which Mask R-CNN needs"),
        ({"segmentation": None}, "no segmentation"),
        ({"segmentation": [[]]}, r"segmentation \[\[\]\]: a polygon of 0 numbers, expected x and y of at least 3"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon of 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6], [1, 2, 3]]}, "a polygon of 3 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon of 7 numbers"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "expected a list of polygons"),
        ({"segmentation": [["1", 2, 3, 4, 5, 6]]}, "expected a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "expected a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5e9, 6]]}, "far outside of the picture, which is 100 x 90"),
        ({"segmentation": "mask.png"}, "expected polygons, or run lengths"),
        ({"segmentation": {"counts": [9000]}}, "expected polygons, or run lengths"),
        ({"segmentation": {**COMPRESSED, "size": [100, 90]}}, r"size \[100, 90\], expected \[90, 100\]"),
        ({"segmentation": {**COMPRESSED, "counts": COMPRESSED["counts"][:-9]}}, "run lengths of .*, expected 9000"),
        ({"segmentation": {**COMPRESSED, "counts": "\u00e9~"}}, "counts that are no run lengths"),
        ({"segmentation": {**COMPRESSED, "counts": 9000}}, "counts that are no run lengths"),
        ({"segmentation": {**COMPRESSED, "counts": [3, 2]}}, "run lengths of 5 pixels, expected 9000"),
        ({"segmentation": {**COMPRESSED, "counts": [-1, 9001]}}, "none below 0"),
        ({"segmentation": {**COMPRESSED, "counts": ""}}, "run lengths of 0 pixels"),
    ],
)
def test_bad_annotations_are_named(tmp_path, wrong, words):
    path = annotations(tmp_path, [{**rectangle(5, 0, 7, 1, 1, 9, 9), **wrong}])
    with pytest.raises(ValueError, match=f"{path}: annotation 5 has .*{words}"):
        read_annotations(path, masks=True)


@pytest.mark.parametrize(
    "part, wrong, words",
    [
        ("annotations", {"id": None}, r"annotations\[0\] has id None, expected an integer"),
        ("annotations", {"id": "5"}, r"annotations\[0\] has id '5'"),
        ("images", {"id": "0"}, r"images\[0\] has id '0'"),
        ("images", {"id": 0.5}, r"images\[0\] has id 0.5"),
        ("images", {"width": -1, "height": -1}, "image 0 has width -1 and height -1, expected those of the picture"),
        ("images", {"width": 0}, "image 0 has width 0"),
        ("images", {"height": "90"}, "image 0 has width 100 and height '90'"),
        ("images", {"height": 90.5}, "image 0 has width 100 and height 90.5"),
        ("images", {"width": float("nan")}, "image 0 has width nan"),
        ("images", {"file_name": None}, "image 0 has file_name None, expected text"),
        ("images", {"file_name": "\udcff.png"}, r"image 0: '\\udcff.png' has a name that is not UTF-8"),
        ("categories", {"id": "31"}, r"categories\[0\] has id '31'"),
        ("categories", {"name": 31}, "category 31 has name 31, expected text"),
    ],
)
def test_bad_entries_are_named(tmp_path, part, wrong, words):
    content = json.loads(annotations(tmp_path, [rectangle(5, 0, 7, 1, 1, 9, 9)], images=2).read_text())
    content[part][0] |= wrong
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"annotations.json: {words}"):
        read_annotations(tmp_path / "annotations.json", masks=True)


def test_all_that_is_wrong_is_named_together(tmp_path):
    """In both files, also ids that are there twice."""
    box = rectangle(5, 0, 7, 1, 1, 9, 9)
    twice = [{"id": 0, "file_name": f"{n}.png", "width": 100, "height": 90} for n in range(2)]
    path = annotations(tmp_path, [box, {**box, "iscrowd": 3}, {**box, "id": 6, "bbox": []}], images=2)
    (tmp_path / "other").mkdir()
    other = annotations(tmp_path / "other", [], images=twice, categories=[*CATEGORIES, CATEGORIES[0]])
    config = DetectionConfig(detector="maskrcnn", train_annotations=str(path), validation_annotations=str(other))
    with pytest.raises(ValueError) as raised:
        check_annotations(*map(load_annotations, (path, other)), config)
    assert str(raised.value).splitlines() == [
        "the data set has 4 problems:",
        f"- {path}: annotations[1] has id 5, which another one of the annotations has as well",
        f"- {path}: annotation 6 has bbox [], expected [x, y, width, height] in pixels",
        f"- {other}: images[1] has id 0, which another one of the images has as well",
        f"- {other}: categories[2] has id 31, which another one of the categories has as well",
    ]


def test_files_as_tools_write_them(tmp_path):
    """A byte order mark, whole numbers as floats, flags as booleans, null for what is not known, masks of all kinds."""
    objects = [rectangle(n, 0, 7, 10, 10, 20, 20) for n in range(4)]
    objects[0] |= {"id": 0.0, "image_id": 0.0, "category_id": 7.0, "iscrowd": False, "area": None}
    objects[1] |= {"segmentation": COMPRESSED, "iscrowd": None}
    objects[2] |= {"segmentation": {"size": [90, 100], "counts": COUNTS}, "iscrowd": True}
    objects[3] |= {"area": 0, "bbox": [-5.5, 80, 20, 30]}
    content = {"images": [{"id": 0.0, "file_name": "0.png", "width": 100.0, "height": 90}], "annotations": objects}
    text = json.dumps({**content, "categories": CATEGORIES}, ensure_ascii=False)
    (tmp_path / "annotations.json").write_text(text, encoding="utf-8-sig")
    coco = read_annotations(tmp_path / "annotations.json", masks=True)
    assert [entry["iscrowd"] for entry in coco.imgToAnns[0]] == [0, 0, 1, 0]
    assert [entry["area"] for entry in coco.imgToAnns[0]] == [400, 400, 400, 0]
    assert all(np.array_equal(coco.annToMask(entry), MASK) for entry in coco.imgToAnns[0][1:3])
    # COCO's evaluation takes an object of the id 0 for one that nothing matches.
    truth = read_annotations(annotations(tmp_path, [rectangle(0, 0, 7, 10, 10, 20, 20)]), masks=False)
    assert average_precision(
        truth, [{"image_id": 0, "category_id": 7, "score": 0.9, "bbox": [10, 10, 20, 20]}], [0], "bbox"
    )["ap"] == pytest.approx(1)


def test_boxes_without_area_are_left_out_with_a_warning(tmp_path, caplog):
    """Also one that has an area until float32 rounds it away, and torchvision refuses it."""
    boxes = [(10, 10, 20, 20), (10, 10, 0, 20), (100, 5, 9, 9), (-9, 5, 9, 9), (50.00001, 5, 1e-6, 9)]
    objects = [rectangle(n, 0, 7, *box) for n, box in enumerate(boxes)]
    path = str(annotations(tmp_path, objects))
    config = DetectionConfig(train_annotations=path, validation_annotations=valid_annotations(tmp_path))
    contents = [load_annotations(name) for name in (path, config.validation_annotations)]
    check_annotations(*contents, config)
    (record,) = caplog.records
    assert f"{path}: 4 annotations have no area in their picture: 1, 2, 3, 4." in record.getMessage()
    assert [entry["bbox"] for entry in objects_of(make_index(contents[0]), 0)] == [[10, 10, 20, 20]]


@pytest.mark.parametrize(
    "content",
    ["no json", "[1, 2]", '{"images": [], "annotations": [], "categories": []}', '{"images": {}, "annotations": []}'],
)
def test_files_of_another_format_are_named(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match="labels.json cannot be read as annotations in COCO's format"):
        read_annotations(tmp_path / "labels.json", masks=False)


def test_other_categories_and_no_objects_are_named(tmp_path):
    green = annotations(tmp_path, [rectangle(1, 0, 7, 1, 1, 9, 9)], categories=[{"id": 7, "name": "green"}])
    config = DetectionConfig(train_annotations=valid_annotations(tmp_path), validation_annotations=str(green))
    contents = [load_annotations(name) for name in (config.train_annotations, green)]
    with pytest.raises(ValueError, match="have not the same categories; in one of them only.*green"):
        check_annotations(*contents, config)
    path = str(annotations(tmp_path, [rectangle(1, 0, 7, 1, 1, 9, 9, iscrowd=1), rectangle(2, 0, 7, 1, 1, 0, 9)]))
    config.train_annotations = config.validation_annotations = path
    with pytest.raises(ValueError, match="annotations.json has no objects that have an area and are no crowds"):
        check_annotations(load_annotations(path), load_annotations(path), config)
    coco = make_index(load_annotations(annotations(tmp_path, [rectangle(1, 0, 7, 1, 1, 9, 9)], images=9)))
    config.max_eval_samples = 1
    with pytest.raises(
        ValueError, match="no objects to evaluate on in a sample of 1 images: use a larger --max_eval_samples"
    ):
        detection_loaders(coco, coco, config, 0, 1)
