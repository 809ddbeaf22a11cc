"""From pictures and their masks to batches for semantic segmentation, in the order of `batches`."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Image, IterableDataset
from rednet.training.data.batches import EvaluationOrder, TrainingOrder, decode, fetch, make_loader
from rednet.training.data.problems import (
    UPRIGHT,
    first_of,
    mode_problem,
    raise_problems,
    read_each,
    read_header,
    turned_text,
)
from rednet.training.data.sources import limit, read_source, select, with_validation
from rednet.training.data.transforms import dense_changes
from rednet.training.options.groups import CropOptions, MaskOptions, SegmentationConfig
from rednet.training.utils.randomness import seeded
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import BaseImageProcessor, PreTrainedConfig


SAMPLE = 300  # masks of a split that are decoded before the first step
MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
logger = logging.getLogger(__name__)


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
    splits, problems = {}, []
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
    """The files of a folder by their names without suffix; what is wrong with those is added to `problems`."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; expected pictures in images, their masks in annotations")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name[0] != ".":
            if path.is_dir():
                problems.append(f"{path} is a folder, expected files alone in {folder}")
            elif path.stem in files:
                problems.append(f"{path} has the name of {files[path.stem]}: expected one file of each name")
            else:
                files[path.stem] = str(path)
    return files


class PairReader:
    """Opens a row: the picture, uint8 (3, H, W), and its mask (H, W).

    Raises:
        ValueError: one of both cannot be read, is of another size, or holds a value that is no class.
    """

    def __init__(self, model_config: PreTrainedConfig, config: MaskOptions):
        self.num_labels, self.ignored = model_config.num_labels, model_config.semantic_loss_ignore_index
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
        mask = mask.astype(np.int32)  # one of one bit would be padded with True
        if self.reduce_labels:
            mask = np.where(mask == 0, 0, mask) - 1
            mask[(mask == -1) | (mask == 254)] = self.ignored
        wrong = ((mask < 0) | (mask >= self.num_labels)) & (mask != self.ignored)
        if wrong.any():
            raise ValueError(
                f"{name_of(row)} holds {self.stored(np.unique(mask[wrong])[:5])}, but the model has {self.num_labels} "
                f"classes, which are {self.stored([0, self.num_labels - 1])} in masks ({self.unlabeled}: not labeled)"
                + ("" if self.reduce_labels else "; --do_reduce_labels true is for masks that count from 1")
            )
        return mask

    def stored(self, classes: Sequence[int]) -> list[int]:
        """The values that stand for classes in the files."""
        return [int(number) + self.reduce_labels for number in classes]

    @property
    def unlabeled(self) -> str:
        """The values in the files that stand for no class."""
        return "0 and 255" if self.reduce_labels else str(self.ignored)


def name_of(row: dict) -> str:
    return f"the mask {row['label']['path'] or '(without a path)'} of {row['image']['path'] or 'a picture'}"


@dataclass
class Findings:
    """What a look at a picture and its mask finds."""

    name: str
    problem: str | None = None
    turned: bool = False  # by EXIF, the picture and not the mask, in a way that their sizes do not tell
    pixels: np.ndarray | None = None  # of each class, and in the end those that are not labeled


def check_pairs(
    train: Dataset | IterableDataset,
    validation: Dataset | IterableDataset,
    config: SegmentationConfig,
    model_config: PreTrainedConfig,
) -> None:
    """Compares the headers of all pictures and masks that are files, and counts the pixels of a sample of the masks.

    Of rows with bytes the sample alone is read, which the seed draws; of a stream it is the beginning.

    Raises:
        ValueError: the data cannot be trained on. The message names all that is wrong.
    """
    read, problems = PairReader(model_config, config), []
    if read.num_labels < 2:
        problems.append(f"the model has {read.num_labels} class, expected at least 2: what is around counts as one")
    for split, images in ((config.train_split, train), (config.validation_split, validation)):
        name = f"{config.source}, split {split}"
        found = list(look_at(images, read, config.seed, f"check {split}"))
        if not found:
            problems.append(f"{name} has no pictures")
        problems += [one.problem for one in found if one.problem is not None]
        if turned := [one.name for one in found if one.turned]:
            logger.warning(turned_text(turned, "masks"))
        looks = [one for one in found if one.pixels is not None]
        if len(looks) > 0 and not any(one.problem is not None for one in found):
            whole = isinstance(images, Dataset) and len(looks) == len(images) and config.max_train_samples is None
            problems += coverage_problems(looks, read, model_config.id2label, name, images is train, whole)
    raise_problems(problems, "the data set")


def look_at(images: Dataset | IterableDataset, read: PairReader, seed: int, description: str) -> Iterator[Findings]:
    """`look` at all pictures and masks that are files, or else at the sample."""
    for column in ("image", "label"):
        images = images.cast_column(column, Image(decode=False))
    if isinstance(images, IterableDataset):
        return read_each(partial(look, read=read), list(images.take(SAMPLE)), description)
    if len(images) == 0:
        return iter(())
    size = min(SAMPLE, len(images))
    drawn = set(np.random.default_rng(seed).choice(len(images), size, replace=False).tolist())
    rows = range(len(images)) if images[0]["image"]["bytes"] is None else sorted(drawn)
    return read_each(lambda row: look(images[row], read, row in drawn), rows, description)


def look(row: dict, read: PairReader, decoded: bool = True) -> Findings:
    """What is wrong with a row, from its headers, and with `decoded` from the pixels of its mask."""
    headers = {}
    for column, word in (("image", "picture"), ("label", "mask")):
        path = (row[column] or {}).get("path") or "(without a path)"
        if row[column] is None:
            return Findings(path, f"a row has no {word}")
        try:
            headers[column] = read_header(row[column])
        except ValueError as error:
            return Findings(path, f"the {word} {path} cannot be used: {error}")
    path, picture, mask = name_of(row), headers["image"], headers["label"]
    if problem := mode_problem(picture):
        return Findings(path, f"the picture {row['image']['path']} {problem}")
    if mask.mode not in MASK_MODES:
        problem = f"is of the mode {mask.mode}, expected one integer for each pixel, its class, not colors"
        return Findings(path, f"{path} {problem} (modes {', '.join(MASK_MODES)})")
    if mask.format in ("JPEG", "MPO"):
        problem = "is a JPEG file, whose compression changes the values at edges: expected PNG or TIFF"
        return Findings(path, f"{path} {problem}")
    if picture.size != mask.size:
        problem = f"is {mask}, expected the size of the picture, which is {picture}"
        if mask.size == picture.stored_size:
            problem += UPRIGHT
        return Findings(path, f"{path} {problem}")
    findings = Findings(path, turned=picture.turned_unseen and mask.orientation != picture.orientation)
    if decoded:
        try:
            classes = read.mask(row)
        except ValueError as error:
            findings.problem = str(error)
        else:
            labeled = classes != read.ignored
            pixels = np.bincount(classes[labeled], minlength=read.num_labels)
            findings.pixels = np.append(pixels, classes.size - labeled.sum())
    return findings


def coverage_problems(
    looks: list[Findings], read: PairReader, names: dict[int, str], source: str, training: bool, whole: bool
) -> Iterator[str]:
    """What is wrong with all masks of a split together; classes that may be somewhere else are warned of.

    Args:
        looks: with the pixels of the masks that were read.
        names: of the classes.
        source: of the masks, for the messages.
        whole: whether `looks` are all masks of the data set.
    """
    *pixels, unlabeled = np.sum([one.pixels for one in looks], axis=0).tolist()
    seen = [number for number, count in enumerate(pixels) if count > 0]
    # A class that is ignored on purpose has none, ever.
    missing = [f"{n} ({names[n]})" for n, count in enumerate(pixels) if count == 0 and n != read.ignored]
    total = unlabeled + sum(pixels)
    text = (
        f"{source}: of {total:,} pixels in {len(looks)} masks, {unlabeled:,} ({unlabeled / total:.1%}) are not labeled "
        f"(stored as {read.unlabeled})"
    )
    expected = f"; expected the values {read.stored([0])[0]} to {read.stored([read.num_labels - 1])[0]} in masks"
    if not seen:
        yield f"{text}: none has a class"
    elif len(seen) == 1 and unlabeled > 0:
        lacking = f": no pixel is of class {first_of(missing)}" if missing else ""
        yield f"{text}, and all others are of class {seen[0]} ({names[seen[0]]}){lacking}{expected}"
    elif missing and training and whole:
        cure = ". Without --do_reduce_labels masks count from 0" if read.reduce_labels else ""
        yield f"{text}, and none is of class {first_of(missing)}{expected}, all of them{cure}"
    elif missing and training:
        logger.warning(f"{text}, and none is of class {first_of(missing)}")
    if seen and (empty := [one.name for one in looks if not one.pixels[:-1].any()]):
        logger.warning(f"{source}: {len(empty)} of {len(looks)} masks have no labeled pixel: {first_of(empty)}")
    if training and read.ignored in range(read.num_labels):
        logger.warning(
            f"class {read.ignored} ({names[read.ignored]}) is semantic_loss_ignore_index: it is not trained"
        )


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

    In a row that does not count, no pixel is labeled.
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
