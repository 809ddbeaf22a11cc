"""From pictures and COCO's annotations to batches for detection, in the order of `batches`."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, Value
from pycocotools.coco import COCO
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from augmentation import dense_changes, seeded
from batches import EvaluationOrder, TrainingOrder, decode, fetch, make_loader
from data import limit
from options import DetectionConfig


def read_annotations(path: str, masks: bool) -> COCO:
    """COCO's index of a file in its format. What only COCO's own files have, `iscrowd` and `area`, is filled in.

    Raises:
        ValueError: it is no such file, or an annotation has no picture, category or box, or no mask where `masks` are
            needed. The message names it.
    """
    try:
        content = json.loads(Path(path).read_text())
        for part in ("images", "annotations", "categories"):
            if not content[part] and part != "annotations":
                raise ValueError(f"it has no {part}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as annotations in COCO's format: {error!r}") from error
    needed = {"images": ("id", "width", "height", "file_name"), "annotations": ("id",), "categories": ("id", "name")}
    for part, keys in needed.items():
        for number, entry in enumerate(content[part]):
            if lacking := [key for key in keys if entry.get(key) is None]:
                raise ValueError(f"{path}: {part}[{number}] has no {lacking[0]}")
    images, categories = ({entry["id"] for entry in content[part]} for part in ("images", "categories"))
    for entry in content["annotations"]:
        name = f"{path}: annotation {entry.get('id')}"
        for key, known in (("image_id", images), ("category_id", categories)):
            if entry.get(key) not in known:
                raise ValueError(f"{name} has {key} {entry.get(key)!r}, which the file does not have")
        if len(entry.get("bbox") or []) != 4:
            raise ValueError(f"{name} has bbox {entry.get('bbox')!r}, expected [x, y, width, height]")
        if masks and not entry.get("segmentation"):
            raise ValueError(f"{name} has no segmentation, which Mask R-CNN needs")
        entry.setdefault("iscrowd", 0)
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
    content.setdefault("info", {})
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def categories_of(coco: COCO) -> list[dict]:
    """Id and name of each category, in the order of the labels from 1 on."""
    return [{"id": number, "name": coco.cats[number]["name"]} for number in sorted(coco.cats)]


def objects_of(coco: COCO, image_id: int) -> list[dict]:
    """The annotations that a detector is trained on: of single objects, with an area in the picture."""
    width, height = coco.imgs[image_id]["width"], coco.imgs[image_id]["height"]
    return [
        entry
        for entry in coco.imgToAnns[image_id]
        for x, y, w, h in [entry["bbox"]]
        if not entry["iscrowd"] and min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
    ]


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


def read_both(config: DetectionConfig) -> tuple[COCO, COCO]:
    """The annotations to train on and to evaluate on.

    Raises:
        ValueError: a file is wrong, or both have not the same categories.
    """
    paths = (config.train_annotations, config.validation_annotations)
    train, validation = (read_annotations(path, config.detector == "maskrcnn") for path in paths)
    known, found = categories_of(train), categories_of(validation)
    if different := [category for category in known + found if category not in known or category not in found]:
        raise ValueError(
            f"{paths[0]} and {paths[1]} have not the same categories; in one of them only: {different[:4]}"
        )
    return train, validation


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
