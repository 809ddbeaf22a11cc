"""From pictures and their masks to batches for semantic segmentation, in the order of `batches`."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image
from rednet.training.data.batches import EvaluationOrder, decode, fetch, make_loader, training_order
from rednet.training.data.problems import name_problem, raise_problems
from rednet.training.data.sources import (
    Images,
    limit_evaluation,
    limit_training,
    read_source,
    select,
    with_validation,
)
from rednet.training.data.transforms import dense_augmentations
from rednet.training.options.scripts import CropOptions, MaskOptions, SegmentationConfig
from rednet.training.utils.randomness import seeded
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import BaseImageProcessor, PreTrainedConfig


def load_pairs(config: MaskOptions) -> tuple[Images, Images]:
    """The training and the validation pictures, with the columns `image` and `label`, which contains the mask.

    Raises:
        ValueError: a folder, a split or a column is missing, or a picture has no mask.
    """
    splits: Mapping[str, Images] = with_validation(
        read_folders(config) if config.train_dir else read_source(config), config
    )
    train, validation = (select(splits, option, config, masks=True) for option in ("train_split", "validation_split"))
    return limit_training(train, config), limit_evaluation(validation, config)


def read_folders(config: MaskOptions) -> dict[str, Dataset]:
    """The splits in `train_dir` and `validation_dir`, with the columns that `config` names."""
    folders = {config.train_split: config.train_dir, config.validation_split: config.validation_dir}
    columns = (config.image_column_name, config.label_column_name)
    splits: dict[str, Dataset] = {}
    problems: list[str] = []
    for split, folder in folders.items():
        if folder:
            images, masks = (files_by_stem(Path(folder, name), problems) for name in ("images", "annotations"))
            for stem in sorted(images.keys() ^ masks.keys()):
                lacking = f"mask {stem} in annotations" if stem in images else f"picture {stem} in images"
                problems.append(f"{(images | masks)[stem]} has no {lacking}")
            paths = zip(columns, ([files.get(stem) for stem in images] for files in (images, masks)))
            splits[split] = Dataset.from_dict(dict(paths), Features(dict.fromkeys(columns, Image())))
    raise_problems(problems, "the data set")
    return splits


def files_by_stem(folder: Path, problems: list[str]) -> dict[str, str]:
    """The files of a folder by their names without suffix. Adds a message to `problems` for each that is invalid."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; expected pictures in images, their masks in annotations")
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.name[0] != ".":
            if path.is_dir():
                problems.append(f"{path} is a folder, expected files alone in {folder}")
            elif problem := name_problem(str(path)):
                problems.append(problem)
            elif path.stem in files:
                problems.append(f"{path} has the name of {files[path.stem]}: expected one file of each name")
            else:
                files[path.stem] = str(path)
    return files


class PairReader:
    """Opens the picture of a row, uint8 (3, H, W), and its mask, int32 (H, W).

    Args:
        model_config: has the number of classes, and the class of pixels that are not labeled.

    Raises:
        ValueError: on a call: one of the two cannot be read, their sizes differ, or the mask has an invalid value.
    """

    def __init__(self, model_config: PreTrainedConfig, config: MaskOptions):
        self.num_labels: int = model_config.num_labels or 0
        self.ignored: int = model_config.semantic_loss_ignore_index
        self.reduce_labels = config.do_reduce_labels

    def __call__(self, row: dict) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, mask = decode(row, lambda stored: v2.functional.to_image(stored.convert("RGB"))), self.mask(row)
        if mask.shape != image.shape[1:]:
            raise ValueError(
                f"{name_of(row)} is {mask.shape}, expected a class for each of the picture's {tuple(image.shape[1:])}"
            )
        return image, tv_tensors.Mask(mask)

    def mask(self, row: dict) -> np.ndarray:
        """The mask alone, int32 (H, W)."""
        mask = decode(row, np.array, "label")
        if mask.ndim != 2 or mask.dtype.kind == "f":
            raise ValueError(
                f"{name_of(row)} is {mask.shape} of {mask.dtype}, expected one integer for each pixel, its class"
            )
        mask = mask.astype(np.int32)  # a mask of bools would be padded with True
        if self.reduce_labels:
            mask -= 1
            mask[(mask == -1) | (mask == 254)] = self.ignored
        wrong = ((mask < 0) | (mask >= self.num_labels)) & (mask != self.ignored)
        if wrong.any():
            raise ValueError(
                f"{name_of(row)} holds {self.stored(np.unique(mask[wrong])[:5])}, but the model has {self.num_labels} "
                f"classes, which are {self.stored([0, self.num_labels - 1])} in masks ({self.unlabeled}: not labeled)"
                + ("" if self.reduce_labels else "; --do_reduce_labels true is for masks that count from 1")
            )
        return mask

    def stored(self, classes: Iterable[int]) -> list[int]:
        """The values of classes in the files."""
        return [int(number) + self.reduce_labels for number in classes]

    @property
    def unlabeled(self) -> str:
        """The values in the files of pixels that are not labeled."""
        return "0 and 255" if self.reduce_labels else str(self.ignored)


def name_of(row: dict) -> str:
    """The mask of a row, for messages."""
    return f"the mask {row['label']['path'] or '(without a path)'} of {row['image']['path'] or 'a picture'}"


class PairTransform:
    """Scales, crops and augments a picture and its mask alike, at random: the same key gives the same pixels.

    Args:
        ignored: the class that pads masks.
    """

    def __init__(self, config: CropOptions, ignored: int):
        self.scale = config.random_scale
        fill = {tv_tensors.Image: [round(255 * mean) for mean in config.image_mean], tv_tensors.Mask: ignored}
        crop = v2.RandomCrop(config.crop_size, pad_if_needed=True, fill=fill)
        self.augment = v2.Compose([crop, *dense_augmentations(config)])

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask, key: tuple[int, ...]
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        with seeded(*key):
            scale = torch.empty(1).uniform_(*self.scale).item()
            size = [max(round(scale * length), 1) for length in mask.shape]
            return self.augment(v2.functional.resize(image, size), v2.functional.resize(mask, size))


class TrainingPairs(torch.utils.data.Dataset):
    """Batches for `TrainingOrder`: `pixel_values`, uint8 (B, 3, H, W), and `labels`, int64 (B, H, W)."""

    def __init__(self, images: Images, read: PairReader, transform: PairTransform):
        self.images, self.read, self.transform = images, read, transform

    def __getitems__(self, batch: list[tuple]) -> dict[str, torch.Tensor]:
        keys, rows = zip(*batch)
        pairs = [self.transform(*self.read(row), key) for row, key in zip(fetch(self.images, rows), keys)]
        images, masks = zip(*pairs)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(masks).long()}


class EvaluationPairs(torch.utils.data.Dataset):
    """Batches for `EvaluationOrder`, as lists of whole pictures of any sizes.

    `pixel_values` are the outputs of the image processor, as users will run the model, and `labels` are the masks,
    int64 (H, W). A row that does not count has no labeled pixels; `counts` (B,) says which rows count.
    """

    def __init__(self, images: Images, read: PairReader, processor: BaseImageProcessor):
        self.images, self.read, self.processor = images, read, processor

    def __getitems__(self, batch: list[tuple]) -> dict[str, list[torch.Tensor] | torch.Tensor]:
        counts, rows = zip(*batch)
        images, masks = zip(*(self.read(row) for row in fetch(self.images, rows)))
        pixel_values = [self.processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
        labels = [
            mask.long() if count else torch.full(mask.shape, self.read.ignored) for mask, count in zip(masks, counts)
        ]
        return {"pixel_values": pixel_values, "labels": labels, "counts": torch.tensor(counts)}


def segmentation_loaders(
    train: Images,
    validation: Images,
    config: SegmentationConfig,
    processor: BaseImageProcessor,
    model_config: PreTrainedConfig,
    process: int,
    num_processes: int,
) -> tuple[DataLoader, DataLoader]:
    """Loaders of `TrainingPairs` and of `EvaluationPairs`."""
    for column in ("image", "label"):
        train, validation = (split.cast_column(column, Image(decode=False)) for split in (train, validation))
    read = PairReader(model_config, config)
    train_order = training_order(train, config, process, num_processes)
    eval_order = EvaluationOrder(validation, config.per_device_eval_batch_size, process, num_processes)
    return (
        make_loader(TrainingPairs(train, read, PairTransform(config, read.ignored)), train_order, config),
        make_loader(EvaluationPairs(validation, read, processor), eval_order, config),
    )
