"""From pictures and COCO's annotations to batches for detection, in the order of `batches`."""

import io
import json
import logging
import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, Value
from pycocotools.coco import COCO
from rednet.training.data.batches import EvaluationOrder, TrainingOrder, decode, fetch, make_loader
from rednet.training.data.problems import (
    UPRIGHT,
    Header,
    first_of,
    mode_problem,
    raise_problems,
    read_each,
    read_header,
    turned_text,
)
from rednet.training.data.sources import limit
from rednet.training.data.transforms import dense_changes
from rednet.training.options.groups import DetectionConfig
from rednet.training.utils.randomness import seeded
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm.auto import tqdm


# What a file in COCO's format has: lists of entries, and in these the keys of integers.
PARTS = {
    "images": ["id", "width", "height"],
    "annotations": ["id", "image_id", "category_id", "iscrowd"],
    "categories": ["id"],
}
LEAST = 0.01  # pixels that the sides of a box have: torchvision refuses a box that float32 makes empty
logger = logging.getLogger(__name__)


def read_annotations(path: str, masks: bool) -> COCO:
    """COCO's index of a file in its format.

    Raises:
        ValueError: it is no such file, or something in it is wrong. The message names every wrong entry.
    """
    content = load_annotations(path)
    raise_problems(annotation_problems(content, path, masks), "the data set")
    return make_index(content)


def load_annotations(path: str) -> dict:
    """The content of a file in COCO's format, in which whole numbers are integers. Its entries are not checked yet.

    Raises:
        ValueError: it is no such file.
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
                # Tables write whole numbers as 17.0. Flags are written as false and true as well.
                value = entry.get(key)
                if isinstance(value, float) and value.is_integer() or key == "iscrowd" and isinstance(value, bool):
                    entry[key] = int(value)
    return content


def annotation_problems(content: dict, path: str, masks: bool) -> list[str]:
    """Whatever is wrong with the entries of a file: each is named, with what was given and what was expected.

    Args:
        content: of `load_annotations`.
        masks: whether annotations need a mask.
    """
    problems, known = [], {}
    for part in PARTS:
        numbers = known[part] = {}  # id -> entry
        for place, entry in enumerate(content[part]):
            name = f"{path}: {part}[{place}]"
            if not is_integer(entry.get("id")):
                problems.append(f"{name} has id {entry.get('id')!r}, expected an integer")
            elif entry["id"] in numbers:
                problems.append(f"{name} has id {entry['id']}, which another one of the {part} has as well")
            else:
                numbers[entry["id"]] = entry
    for number, entry in known["categories"].items():
        if not (isinstance(entry.get("name"), str) and entry["name"]):
            problems.append(f"{path}: category {number} has name {entry.get('name')!r}, expected text")
    for number, entry in known["images"].items():
        if not (isinstance(entry.get("file_name"), str) and entry["file_name"]):
            problems.append(f"{path}: image {number} has file_name {entry.get('file_name')!r}, expected text")
        if not has_size(entry):
            size = f"width {entry.get('width')!r} and height {entry.get('height')!r}"
            problems.append(f"{path}: image {number} has {size}, expected those of the picture in pixels")
    for number, entry in tqdm(known["annotations"].items(), desc=f"check {path}", leave=False, delay=2):
        image = known["images"].get(entry.get("image_id")) if is_integer(entry.get("image_id")) else None
        for problem in object_problems(entry, image, known["categories"], masks):
            problems.append(f"{path}: annotation {number} has {problem}")
    return problems


def object_problems(entry: dict, image: dict | None, categories: dict, masks: bool) -> Iterator[str]:
    """What is wrong with an annotation of `image`, which is None where the file has none of that id."""
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
    """What keeps pycocotools from making a mask of it. With some of these it would take memory at random for one."""
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
    """Run lengths from their list or from COCO's compressed text; None where it is neither.

    Each number is written in groups of five bits, the lowest first, as characters from "0" on, of which those of 32 and
    more continue the number. From the fourth on, numbers are differences to the one before the last.
    """
    if isinstance(counts, list):
        return counts if all(is_integer(count) for count in counts) else None
    if not isinstance(counts, str):
        return None
    numbers, value, shift = [], 0, 0
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
    """Whether it is a list of finite numbers."""
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def has_size(image: dict) -> bool:
    return all(is_integer(image.get(side)) and image[side] > 0 for side in ("width", "height"))


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def make_index(content: dict) -> COCO:
    """COCO's index of a content without problems. What only COCO's own files have, `iscrowd` and `area`, is filled
    in."""
    for number, entry in enumerate(content["annotations"], 1):
        entry["id"] = number  # COCO's evaluation takes an object of the id 0 for none
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
    """Checks all entries of both files, from `load_annotations`, and warns of objects that are of no use.

    Raises:
        ValueError: something is wrong. The message names all of it.
    """
    problems, masks = [], config.detector == "maskrcnn"
    contents = {config.train_annotations: train, config.validation_annotations: validation}
    for path, content in contents.items():
        problems += annotation_problems(content, path, masks)
    raise_problems(problems, "the data set")  # what follows needs entries that are complete
    known, found = ({(entry["id"], entry["name"]) for entry in part["categories"]} for part in (train, validation))
    if different := sorted(known ^ found):
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


def check_pictures(train: Dataset, validation: Dataset) -> None:
    """Compares the pictures of both loaders with the sizes in the annotations; the headers of the files say theirs.

    Raises:
        ValueError: a picture is missing, of another size, or cannot be read. The message names all of them.
    """
    problems, turned = [], []
    for images in (train, validation):
        rows = images.select_columns(["image", "width", "height"])
        for row, (header, problem) in zip(rows, read_each(header_or_problem, rows, "check pictures")):
            path, size = row["image"]["path"], (row["width"], row["height"])
            if problem is None and header.size != size:
                problem = f"is {header}, the annotations say {size[0]} x {size[1]}"
                if header.stored_size == size:
                    problem += UPRIGHT
            if problem is not None:
                problems.append(f"{path} {problem}")
            elif header.turned_unseen:
                turned.append(path)
    raise_problems(problems, "the data set")
    if turned:
        logger.warning(turned_text(turned, "boxes and masks"))


def header_or_problem(row: dict) -> tuple[Header | None, str | None]:
    try:
        header = read_header(row["image"])
    except ValueError as error:
        return None, f"cannot be used: {error}"
    return header, mode_problem(header)


def categories_of(coco: COCO) -> list[dict]:
    """Id and name of each category, in the order of the labels from 1 on."""
    return [{"id": number, "name": coco.cats[number]["name"]} for number in sorted(coco.cats)]


def objects_of(coco: COCO, image_id: int) -> list[dict]:
    """The annotations that a detector is trained on: of single objects, with an area in the picture."""
    image = coco.imgs[image_id]
    return [entry for entry in coco.imgToAnns[image_id] if not entry["iscrowd"] and is_visible(entry, image)]


def is_visible(entry: dict, image: dict) -> bool:
    """Whether the box of an annotation has an area in its picture, also in float32 and after a flip."""
    (x, y, w, h), width, height = entry["bbox"], image["width"], image["height"]
    return min(x + w, width) - max(x, 0) >= LEAST and min(y + h, height) - max(y, 0) >= LEAST


def pictures(coco: COCO, folder: str, for_training: bool) -> Dataset:
    """One row for each picture, which is not opened yet; for training those that have objects, with them.

    The objects are text: as Python's objects, those of all pictures would come to be copied into every worker.
    """
    rows = []
    for number, info in sorted(coco.imgs.items()):
        objects = objects_of(coco, number) if for_training else []
        if objects or not for_training:
            image = {"bytes": None, "path": str(Path(folder, info["file_name"]))}
            size = {"width": info["width"], "height": info["height"]}
            rows.append({"image": image, "id": number, **size, "objects": json.dumps(objects)})
    numbers = dict.fromkeys(("id", "width", "height"), Value("int64"))
    return Dataset.from_list(
        rows, features=Features({"image": Image(decode=False), **numbers, "objects": Value("string")})
    )


class TrainingPictures(torch.utils.data.Dataset):
    """Batches for `TrainingOrder`: `images`, a list of uint8 (3, H, W), and `targets`, as torchvision's detectors
    take them."""

    def __init__(self, images: Dataset, categories: list[dict], config: DetectionConfig):
        self.images, self.masks, self.change = images, config.detector == "maskrcnn", v2.Compose(dense_changes(config))
        self.labels = {category["id"]: label for label, category in enumerate(categories, 1)}

    def __getitems__(self, places: list[tuple]) -> dict[str, list]:
        keys, rows = zip(*places)
        images, targets = [], []
        for key, row in zip(keys, fetch(self.images, rows)):
            image, target = open_picture(row), self.target(row)
            with seeded(*key):
                image, target = self.change(image, target)
            images.append(image.as_subclass(torch.Tensor))
            targets.append({name: value.as_subclass(torch.Tensor) for name, value in target.items()})
        return {"images": images, "targets": targets}

    def target(self, row: dict) -> dict[str, torch.Tensor]:
        """`boxes` (N, 4) from corner to corner, `labels` (N,), and for Mask R-CNN `masks`, uint8 (N, H, W)."""
        objects = json.loads(row["objects"])
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=(row["height"], row["width"]))
        boxes = v2.functional.convert_bounding_box_format(boxes, new_format="XYXY")
        target = {
            "boxes": v2.functional.clamp_bounding_boxes(boxes),
            "labels": torch.tensor([self.labels[entry["category_id"]] for entry in objects]),
        }
        if self.masks:
            coco = COCO()
            coco.imgs = {row["id"]: row}
            masks = [torch.from_numpy(coco.annToMask(entry)) for entry in objects]
            target["masks"] = tv_tensors.Mask(torch.stack(masks))
        return target


class EvaluationPictures(torch.utils.data.Dataset):
    """Batches for `EvaluationOrder`: `images`, a list of uint8 (3, H, W), their `ids`, and whether each `counts`."""

    def __init__(self, images: Dataset):
        self.images = images

    def __getitems__(self, places: list[tuple]) -> dict[str, list | torch.Tensor]:
        counts, rows = zip(*places)
        rows = fetch(self.images, rows)
        images = [open_picture(row).as_subclass(torch.Tensor) for row in rows]
        return {"images": images, "ids": torch.tensor([row["id"] for row in rows]), "counts": torch.tensor(counts)}


def open_picture(row: dict) -> tv_tensors.Image:
    image = decode(row, lambda stored: v2.functional.to_image(stored.convert("RGB")))
    if image.shape[1:] != (row["height"], row["width"]):
        raise ValueError(
            f"{row['image']['path']} is {image.shape[2]} x {image.shape[1]}, the annotations say {row['width']} x "
            f"{row['height']}"
        )
    return image


def detection_loaders(
    train: COCO, validation: COCO, config: DetectionConfig, process: int, num_processes: int
) -> tuple[DataLoader, DataLoader]:
    """Of `TrainingPictures`, and of `EvaluationPictures`, with objects or without.

    Raises:
        ValueError: there are no objects to evaluate on.
    """
    train_images = limit(pictures(train, config.train_dir, for_training=True), config.max_train_samples, config)
    eval_images = pictures(validation, config.validation_dir, for_training=False)
    eval_images = limit(eval_images, config.max_eval_samples, config)
    if not any(objects_of(validation, number) for number in eval_images["id"]):
        raise ValueError(f"{config.validation_annotations} has no objects to evaluate on")
    train_order = TrainingOrder(train_images, config, process, num_processes)
    eval_order = EvaluationOrder(eval_images, config.per_device_eval_batch_size, process, num_processes)
    return (
        make_loader(TrainingPictures(train_images, categories_of(train), config), train_order, config),
        make_loader(EvaluationPictures(eval_images), eval_order, config),
    )
