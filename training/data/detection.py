"""From pictures and COCO's annotations to batches for detection, in the order of `batches`."""

import json
import logging
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, Value
from pycocotools.coco import COCO
from rednet.training.data.batches import EvaluationOrder, TrainingOrder, decode, fetch, make_loader
from rednet.training.data.coco import categories_of, objects_of
from rednet.training.data.headers import (
    ORIENTATION_HINT,
    Header,
    hidden_rotation_warning,
    read_picture_header,
)
from rednet.training.data.problems import raise_problems, read_each
from rednet.training.data.sources import limit
from rednet.training.data.transforms import dense_augmentations
from rednet.training.options.scripts import DetectionConfig
from rednet.training.utils.randomness import seeded
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2


logger = logging.getLogger(__name__)


def check_pictures(train: Dataset, validation: Dataset) -> None:
    """Compares the sizes in the headers of the pictures with those in the annotations.

    Raises:
        ValueError: pictures are missing, damaged, or of other sizes. The message lists them.
    """
    problems, rotated = [], []
    for images in (train, validation):
        rows = images.select_columns(["image", "width", "height"])
        for row, header in zip(rows, read_each(header_or_error, rows, "check pictures")):
            path, size = row["image"]["path"], (row["width"], row["height"])
            if isinstance(header, ValueError):
                problems.append(f"{path} cannot be used: {header}")
            elif header.size != size:
                hint = ORIENTATION_HINT if header.stored_size == size else ""
                problems.append(f"{path} is {header}, the annotations say {size[0]} x {size[1]}{hint}")
            elif header.has_hidden_rotation:
                rotated.append(path)
    raise_problems(problems, "the data set")
    if rotated:
        logger.warning(hidden_rotation_warning(rotated, "boxes and masks"))


def header_or_error(row: dict) -> Header | ValueError:
    """The header of the picture of a row, or the reason why the picture cannot be used."""
    try:
        return read_picture_header(row["image"])
    except ValueError as error:
        return error


def pictures(coco: COCO, folder: str, for_training: bool) -> Dataset:
    """One row for each picture, which is not opened yet. For training, only pictures with objects to train on.

    The objects are stored as JSON. As Python objects, they would be copied into the memory of each worker.
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
    """Batches for `TrainingOrder`: `images`, a list of uint8 (3, H, W), and `targets` for torchvision's detectors."""

    def __init__(self, images: Dataset, categories: list[dict], config: DetectionConfig):
        self.images, self.masks = images, config.detector == "maskrcnn"
        self.augment = v2.Compose(dense_augmentations(config))
        self.labels = {category["id"]: label for label, category in enumerate(categories, 1)}

    def __getitems__(self, batch: list[tuple]) -> dict[str, list]:
        keys, indices = zip(*batch)
        images, targets = [], []
        for key, row in zip(keys, fetch(self.images, indices)):
            image, target = open_picture(row), self.target(row)
            with seeded(*key):
                image, target = self.augment(image, target)
            images.append(image.as_subclass(torch.Tensor))
            targets.append({name: value.as_subclass(torch.Tensor) for name, value in target.items()})
        return {"images": images, "targets": targets}

    def target(self, row: dict) -> dict[str, torch.Tensor]:
        """`boxes` (N, 4) as x1, y1, x2, y2, `labels` (N,), and for Mask R-CNN `masks`, uint8 (N, H, W)."""
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
    """Batches for `EvaluationOrder`: `images`, a list of uint8 (3, H, W), their `ids` (B,), and `counts` (B,), whether
    a row counts."""

    def __init__(self, images: Dataset):
        self.images = images

    def __getitems__(self, batch: list[tuple]) -> dict[str, list | torch.Tensor]:
        counts, indices = zip(*batch)
        rows = fetch(self.images, indices)
        images = [open_picture(row).as_subclass(torch.Tensor) for row in rows]
        return {"images": images, "ids": torch.tensor([row["id"] for row in rows]), "counts": torch.tensor(counts)}


def open_picture(row: dict) -> tv_tensors.Image:
    """The picture of a row, uint8 (3, H, W).

    Raises:
        ValueError: it cannot be read, or its size is not that in the annotations.
    """
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
    """Loaders of `TrainingPictures` and of `EvaluationPictures`, which include pictures without objects.

    Raises:
        ValueError: the sample of `max_eval_samples` has no objects to evaluate on.
    """
    train_images = limit(pictures(train, config.train_dir, for_training=True), config.max_train_samples, config.seed)
    eval_images = pictures(validation, config.validation_dir, for_training=False)
    eval_images = limit(eval_images, config.max_eval_samples, config.seed)
    if not any(objects_of(validation, number) for number in eval_images["id"]):
        raise ValueError(
            f"{config.validation_annotations} has no objects to evaluate on in a sample of {len(eval_images)} images: "
            "use a larger --max_eval_samples"
        )
    batch_size = config.per_device_train_batch_size
    train_order = TrainingOrder(train_images, batch_size, config.seed, process, num_processes)
    eval_order = EvaluationOrder(eval_images, config.per_device_eval_batch_size, process, num_processes)
    return (
        make_loader(TrainingPictures(train_images, categories_of(train), config), train_order, config),
        make_loader(EvaluationPictures(eval_images), eval_order, config),
    )
