"""Annotations in COCO's format."""

import json
from pathlib import Path

from pycocotools.coco import COCO
from rednet.training.data.coco import annotation_problems, load_annotations, make_index
from rednet.training.data.problems import raise_problems


CATEGORIES = [{"id": 31, "name": "red"}, {"id": 7, "name": "blue"}]


def rectangle(number: int, image: int, category: int, x: int, y: int, w: int, h: int, **more) -> dict:
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    annotation = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h]}
    return {**annotation, "segmentation": outline, **more}


def annotations(folder: Path, objects: list[dict], images: int | list[dict] = 1, **more) -> Path:
    if isinstance(images, int):
        images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 90} for n in range(images)]
    content = {"images": images, "annotations": objects, "categories": CATEGORIES, **more}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def read_annotations(path: Path, masks: bool) -> COCO:
    """Reads, checks and indexes one file, as train_detection.py does with two."""
    content = load_annotations(str(path))
    raise_problems(annotation_problems(content, str(path), masks), "the data set")
    return make_index(content)
