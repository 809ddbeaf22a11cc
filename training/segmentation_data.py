"""From pictures and their masks to batches for semantic segmentation, in the order of `batches`."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, IterableDataset
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import BaseImageProcessor, PreTrainedConfig

from augmentation import dense_changes, seeded
from batches import EvaluationOrder, TrainingOrder, decode, fetch, make_loader
from data import limit, read_source, select, with_validation
from options import CropOptions, MaskOptions, SegmentationConfig


def load_pairs(config: MaskOptions) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """The training and the validation pictures, with the columns `image` and `label`, which is the mask.

    Raises:
        ValueError: a folder, a split or a column is missing, or a picture has no mask. The message names it.
    """
    splits = with_validation(read_folders(config) if config.train_dir else read_source(config), config)
    train, validation = (select(splits, option, config, masks=True) for option in ("train_split", "validation_split"))
    return limit(train, config.max_train_samples, config), limit(validation, config.max_eval_samples, config)


def read_folders(config: MaskOptions) -> dict[str, Dataset]:
    """The splits of `train_dir` and `validation_dir`, with the columns that the configuration names."""
    folders = {config.train_split: config.train_dir, config.validation_split: config.validation_dir}
    columns = (config.image_column_name, config.label_column_name)
    splits = {}
    for split, folder in folders.items():
        if folder:
            images, masks = (files_by_stem(Path(folder, name)) for name in ("images", "annotations"))
            if lone := sorted(images.keys() ^ masks.keys()):
                raise ValueError(
                    f"{folder}: {len(lone)} files are in only one of images and annotations, the first is {lone[0]}"
                )
            paths = zip(columns, ([files[stem] for stem in images] for files in (images, masks)))
            splits[split] = Dataset.from_dict(dict(paths), Features(dict.fromkeys(columns, Image())))
    return splits


def files_by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; expected pictures in images, their masks in annotations")
    return {path.stem: str(path) for path in sorted(folder.iterdir()) if path.name[0] != "."}


class PairReader:
    """Opens a row: the picture, uint8 (3, H, W), and its mask (H, W).

    Raises:
        ValueError: one of both cannot be read, is of another size, or holds a value that is no class.
    """

    def __init__(self, model_config: PreTrainedConfig, config: MaskOptions):
        self.num_labels, self.ignored = model_config.num_labels, model_config.semantic_loss_ignore_index
        self.reduce_labels = config.do_reduce_labels

    def __call__(self, row: dict) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image = decode(row, lambda stored: v2.functional.to_image(stored.convert("RGB")))
        mask = decode(row, np.array, "label").astype(np.int32)  # a mask of one bit would be padded with True
        name = f"the mask {row['label']['path'] or '(without a path)'} of {row['image']['path'] or 'a picture'}"
        if mask.shape != image.shape[1:]:
            raise ValueError(
                f"{name} is {mask.shape}, expected a class for each of the picture's {tuple(image.shape[1:])}"
            )
        if self.reduce_labels:
            mask = np.where(mask == 0, 0, mask) - 1
            mask[(mask == -1) | (mask == 254)] = self.ignored
        wrong = (mask >= self.num_labels) & (mask != self.ignored) | (mask < 0)
        if wrong.any():
            raise ValueError(
                f"{name} holds {np.unique(mask[wrong])[:5].tolist()}, but the model has {self.num_labels} classes, "
                f"from 0 on ({self.ignored}: not labelled)"
            )
        return image, tv_tensors.Mask(mask)


class PairTransform:
    """A picture and its mask, randomly scaled, cropped and changed alike: always the same for the same key."""

    def __init__(self, config: CropOptions, ignored: int):
        self.scale = config.random_scale
        fill = {tv_tensors.Image: [round(255 * mean) for mean in config.image_mean], tv_tensors.Mask: ignored}
        crop = v2.RandomCrop(config.crop_size, pad_if_needed=True, fill=fill)
        self.change = v2.Compose([crop, *dense_changes(config)])

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask, key: tuple[int, ...]
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        with seeded(*key):
            scale = torch.empty(1).uniform_(*self.scale).item()
            size = [max(round(scale * length), 1) for length in mask.shape]
            return self.change(v2.functional.resize(image, size), v2.functional.resize(mask, size))


class TrainingPairs(torch.utils.data.Dataset):
    """Batches for `TrainingOrder`: `pixel_values`, uint8 (B, 3, H, W), and `labels` (B, H, W), of one crop size."""

    def __init__(self, images: Dataset | IterableDataset, read: PairReader, transform: PairTransform):
        self.images, self.read, self.transform = images, read, transform

    def __getitems__(self, places: list[tuple]) -> dict[str, torch.Tensor]:
        keys, rows = zip(*places)
        pairs = [self.transform(*self.read(row), key) for row, key in zip(fetch(self.images, rows), keys)]
        images, masks = zip(*pairs)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(masks).long()}


class EvaluationPairs(torch.utils.data.Dataset):
    """Batches for `EvaluationOrder`: lists of whole pictures, as the image processor gives them to users, and masks.

    In a row that does not count, no pixel is labelled.
    """

    def __init__(self, images: Dataset | IterableDataset, read: PairReader, processor: BaseImageProcessor):
        self.images, self.read, self.processor = images, read, processor

    def __getitems__(self, places: list[tuple]) -> dict[str, list[torch.Tensor] | torch.Tensor]:
        counts, rows = zip(*places)
        images, masks = zip(*(self.read(row) for row in fetch(self.images, rows)))
        pixel_values = [self.processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
        labels = [
            mask.long() if count else torch.full(mask.shape, self.read.ignored) for mask, count in zip(masks, counts)
        ]
        return {"pixel_values": pixel_values, "labels": labels, "counts": torch.tensor(counts)}


def segmentation_loaders(
    train: Dataset | IterableDataset,
    validation: Dataset | IterableDataset,
    config: SegmentationConfig,
    processor: BaseImageProcessor,
    model_config: PreTrainedConfig,
    process: int,
    num_processes: int,
) -> tuple[DataLoader, DataLoader]:
    """Of `TrainingPairs` and of `EvaluationPairs`."""
    for column in ("image", "label"):
        train, validation = (split.cast_column(column, Image(decode=False)) for split in (train, validation))
    if isinstance(validation, IterableDataset) and config.max_eval_samples is not None:
        validation = validation.take(config.max_eval_samples)
    read = PairReader(model_config, config)
    train_order = TrainingOrder(train, config, process, num_processes)
    eval_order = EvaluationOrder(validation, config.per_device_eval_batch_size, process, num_processes)
    return (
        make_loader(TrainingPairs(train, read, PairTransform(config, read.ignored)), train_order, config),
        make_loader(EvaluationPairs(validation, read, processor), eval_order, config),
    )
