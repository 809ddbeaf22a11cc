"""Annotation files in COCO's format: read, checked and indexed."""

import io
import json
import logging
import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from rednet.training.data.problems import first_of, name_problem, raise_problems
from rednet.training.options.scripts import DetectionConfig
from tqdm.auto import tqdm


# The lists of a COCO file, and the integers in their entries.
PARTS = {
    "images": ["id", "width", "height"],
    "annotations": ["id", "image_id", "category_id", "iscrowd"],
    "categories": ["id"],
}
MIN_SIDE = 0.01  # of a box in its picture, in pixels: torchvision rejects a box that is empty in float32
logger = logging.getLogger(__name__)


def load_annotations(path: str) -> dict:
    """Reads a COCO file, and converts whole numbers to integers. `annotation_problems` checks its entries.

    Raises:
        ValueError: it is not a COCO file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
        for part in PARTS:
            if not isinstance(content[part], list) or not all(isinstance(entry, dict) for entry in content[part]):
                raise ValueError(f"{part} is not a list of objects")
            if not content[part] and part != "annotations":
                raise ValueError(f"it has no {part}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as annotations in COCO's format: {error!r}") from error
    for part, keys in PARTS.items():
        for entry in content[part]:
            for key in keys:
                # Some tools write whole numbers as 17.0, and flags as false and true.
                value = entry.get(key)
                if isinstance(value, float) and value.is_integer() or key == "iscrowd" and isinstance(value, bool):
                    entry[key] = int(value)
    return content


def annotation_problems(content: dict, path: str, masks: bool) -> list[str]:
    """Lists all invalid entries of a COCO file.

    Args:
        content: the result of `load_annotations`.
        masks: whether each annotation needs a mask.
    """
    problems: list[str] = []
    by_id: dict[str, dict[int, dict]] = {part: {} for part in PARTS}
    for part, entries in by_id.items():
        for index, entry in enumerate(content[part]):
            name = f"{path}: {part}[{index}]"
            if not is_integer(entry.get("id")):
                problems.append(f"{name} has id {entry.get('id')!r}, expected an integer")
            elif entry["id"] in entries:
                problems.append(f"{name} has id {entry['id']}, which another one of the {part} has as well")
            else:
                entries[entry["id"]] = entry
    for number, entry in by_id["categories"].items():
        if not (isinstance(entry.get("name"), str) and entry["name"]):
            problems.append(f"{path}: category {number} has name {entry.get('name')!r}, expected text")
    for number, entry in by_id["images"].items():
        if not (isinstance(entry.get("file_name"), str) and entry["file_name"]):
            problems.append(f"{path}: image {number} has file_name {entry.get('file_name')!r}, expected text")
        elif problem := name_problem(entry["file_name"]):
            problems.append(f"{path}: image {number}: {problem}")
        if not has_size(entry):
            size = f"width {entry.get('width')!r} and height {entry.get('height')!r}"
            problems.append(f"{path}: image {number} has {size}, expected those of the picture in pixels")
    for number, entry in tqdm(by_id["annotations"].items(), desc=f"check {path}", leave=False, delay=2):
        image = by_id["images"].get(entry.get("image_id")) if is_integer(entry.get("image_id")) else None
        for problem in object_problems(entry, image, by_id["categories"], masks):
            problems.append(f"{path}: annotation {number} has {problem}")
    return problems


def object_problems(entry: dict, image: dict | None, categories: dict, masks: bool) -> Iterator[str]:
    """Yields the problems of an annotation. `image` is None if the file has no image of that id."""
    if image is None:
        yield f"image_id {entry.get('image_id')!r}, which none of the images has"
    if not is_integer(entry.get("category_id")) or entry["category_id"] not in categories:
        yield f"category_id {entry.get('category_id')!r}, which none of the categories has"
    if not are_numbers(entry.get("bbox")) or len(entry["bbox"]) != 4 or min(entry["bbox"][2:]) < 0:
        yield f"bbox {shorten(entry.get('bbox'))}, expected [x, y, width, height] in pixels"
    if entry.get("iscrowd") not in (None, 0, 1):
        yield f"iscrowd {entry['iscrowd']!r}, expected 0 or 1"
    if entry.get("area") is not None and not (are_numbers([entry["area"]]) and entry["area"] >= 0):
        yield f"area {entry['area']!r}, expected a number of pixels"
    if masks and not entry.get("segmentation"):
        yield "no segmentation, which Mask R-CNN needs"
    elif masks and image is not None and has_size(image):
        problem = mask_problem(entry["segmentation"], image["width"], image["height"])
        if problem is not None:
            yield f"segmentation {shorten(entry['segmentation'])}: {problem}"


def mask_problem(segmentation: Any, width: int, height: int) -> str | None:
    """The reason why pycocotools cannot decode a mask, or None. Given some of these, it would read arbitrary memory."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not are_numbers(polygon):
                return "expected a list of polygons, each [x1, y1, x2, y2, ...]"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"a polygon of {len(polygon)} numbers, expected x and y of at least 3 points"
            if any(not -side <= n <= 2 * side for side, axis in ((width, 0), (height, 1)) for n in polygon[axis::2]):
                return f"a polygon far outside of the picture, which is {width} x {height}"
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "expected polygons, or run lengths as an object with size and counts"
    if segmentation["size"] != [height, width]:
        return f"size {shorten(segmentation['size'])}, expected [{height}, {width}], height and width of the picture"
    counts = run_lengths(segmentation["counts"])
    if counts is None:
        return "counts that are no run lengths: expected a list of integers, or text in COCO's compression"
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        return f"run lengths of {sum(counts)} pixels, expected {height * width} in all and none below 0"
    return None


def run_lengths(counts: list[int] | str) -> list[int] | None:
    """Run lengths from a list or from COCO's compressed text, or None if `counts` is neither.

    The text has characters from "0" on, with six bits each: five bits of a number, the lowest first, and whether the
    next character continues the number. From the fourth number on, the differences to the last but one are stored.
    """
    if isinstance(counts, list):
        return counts if all(is_integer(count) for count in counts) else None
    if not isinstance(counts, str):
        return None
    numbers: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
            value, shift = 0, 0
    return numbers if shift == 0 else None


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def are_numbers(values: Any) -> bool:
    """Whether `values` is a list of finite numbers."""
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def has_size(image: dict) -> bool:
    return all(is_integer(image.get(side)) and image[side] > 0 for side in ("width", "height"))


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def make_index(content: dict) -> COCO:
    """Indexes the content of a valid COCO file. Fills in `iscrowd` and `area`, which files of other tools may lack."""
    for number, entry in enumerate(content["annotations"], 1):
        entry["id"] = number  # COCO's evaluation ignores an object with the id 0
        entry["iscrowd"] = entry.get("iscrowd") or 0
        if entry.get("area") is None:
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    content.setdefault("info", {})
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def check_annotations(train: dict, validation: dict, config: DetectionConfig) -> None:
    """Checks the contents of both COCO files, from `load_annotations`, and warns of boxes without an area.

    Raises:
        ValueError: entries are invalid, the categories of the files differ, or a file has no objects.
    """
    problems, masks = [], config.detector == "maskrcnn"
    contents = {config.train_annotations: train, config.validation_annotations: validation}
    for path, content in contents.items():
        problems += annotation_problems(content, path, masks)
    raise_problems(problems, "the data set")  # the checks below need valid entries
    train_categories, validation_categories = (
        {(entry["id"], entry["name"]) for entry in part["categories"]} for part in (train, validation)
    )
    if different := sorted(train_categories ^ validation_categories):
        both = " and ".join(contents)
        problems.append(f"{both} have not the same categories; in one of them only: {different[:4]}")
    for path, content in contents.items():
        images = {image["id"]: image for image in content["images"]}
        empty = [entry for entry in content["annotations"] if not is_visible(entry, images[entry["image_id"]])]
        if empty:
            logger.warning(
                f"{path}: {len(empty)} annotations have no area in their picture: "
                f"{first_of([entry['id'] for entry in empty])}. They are not trained on; in evaluation they are objects "
                "that are missed, as in pycocotools"
            )
        if sum(not entry.get("iscrowd") for entry in content["annotations"]) == sum(
            not entry.get("iscrowd") for entry in empty
        ):
            problems.append(f"{path} has no objects that have an area and are no crowds")
    raise_problems(problems, "the data set")


def categories_of(coco: COCO) -> list[dict]:
    """The id and the name of each category, in the order of the labels, which start at 1."""
    return [{"id": number, "name": coco.cats[number]["name"]} for number in sorted(coco.cats)]


def objects_of(coco: COCO, image_id: int) -> list[dict]:
    """The annotations of an image to train on: no crowds, and no boxes without an area in the picture."""
    image = coco.imgs[image_id]
    return [entry for entry in coco.imgToAnns[image_id] if not entry["iscrowd"] and is_visible(entry, image)]


def is_visible(entry: dict, image: dict) -> bool:
    """Whether the box of an annotation has an area in its picture, even in float32 and after a flip."""
    (x, y, w, h), width, height = entry["bbox"], image["width"], image["height"]
    return min(x + w, width) - max(x, 0) >= MIN_SIDE and min(y + h, height) - max(y, 0) >= MIN_SIDE
