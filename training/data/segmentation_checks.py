"""Checks pictures and masks for semantic segmentation before the first step."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from datasets import Dataset, Image, IterableDataset
from rednet.training.data.headers import (
    ORIENTATION_HINT,
    hidden_rotation_warning,
    read_header,
    read_picture_header,
)
from rednet.training.data.problems import first_of, raise_problems, read_each
from rednet.training.data.segmentation import PairReader, name_of
from rednet.training.data.sources import Images
from rednet.training.options.scripts import MaskOptions
from transformers import PreTrainedConfig


SAMPLE_SIZE = 300  # masks of a split that are decoded
MASK_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
logger = logging.getLogger(__name__)


@dataclass
class Findings:
    """The result of checking one picture and its mask."""

    name: str
    problem: str | None = None
    hidden_rotation: bool = False  # of the picture and not of the mask
    pixels: np.ndarray | None = None  # counts (num_labels + 1,) of each class, and of the pixels that are not labeled


def check_pairs(train: Images, validation: Images, config: MaskOptions, model_config: PreTrainedConfig) -> None:
    """Compares the headers of all pictures and masks that are files, and counts the pixels of a sample of the masks.

    If the data set contains the bytes instead, only the sample is read. The sample is random; of a stream, it is the
    beginning.

    Raises:
        ValueError: the data cannot be trained on. The message lists all problems.
    """
    read, problems = PairReader(model_config, config), []
    if read.num_labels < 2:
        problems.append(f"the model has {read.num_labels} class, expected at least 2: the background is a class")
    for split, images in ((config.train_split, train), (config.validation_split, validation)):
        name = f"{config.source}, split {split}"
        findings = list(inspect_all(images, read, config.seed, f"check {split}"))
        if not findings:
            problems.append(f"{name} has no pictures")
        problems += [one.problem for one in findings if one.problem is not None]
        if rotated := [one.name for one in findings if one.hidden_rotation]:
            logger.warning(hidden_rotation_warning(rotated, "masks"))
        counts = [(one.name, one.pixels) for one in findings if one.pixels is not None]
        if counts and not any(one.problem is not None for one in findings):
            complete = isinstance(images, Dataset) and len(counts) == len(images) and config.max_train_samples is None
            names = {int(number): name for number, name in (model_config.id2label or {}).items()}
            problems += coverage_problems(counts, read, names, name, images is train, complete)
    raise_problems(problems, "the data set")


def inspect_all(images: Images, read: PairReader, seed: int, description: str) -> Iterator[Findings]:
    """Inspects all rows if they are files, otherwise the sample."""
    for column in ("image", "label"):
        images = images.cast_column(column, Image(decode=False))
    if isinstance(images, IterableDataset):
        return read_each(partial(inspect, read=read), list(images.take(SAMPLE_SIZE)), description)
    if len(images) == 0:
        return iter(())
    size = min(SAMPLE_SIZE, len(images))
    drawn = set(np.random.default_rng(seed).choice(len(images), size, replace=False).tolist())
    rows = range(len(images)) if images[0]["image"]["bytes"] is None else sorted(drawn)
    return read_each(lambda row: inspect(images[row], read, row in drawn), rows, description)


def inspect(row: dict, read: PairReader, decode_mask: bool = True) -> Findings:
    """Inspects the headers of a row, and with `decode_mask` the pixels of its mask."""
    headers = {}
    for column, word, reader in (("image", "picture", read_picture_header), ("label", "mask", read_header)):
        path = (row[column] or {}).get("path") or "(without a path)"
        if row[column] is None:
            return Findings(path, f"a row has no {word}")
        try:
            headers[column] = reader(row[column])
        except ValueError as error:
            return Findings(path, f"the {word} {path} cannot be used: {error}")
    path, picture, mask = name_of(row), headers["image"], headers["label"]
    if mask.mode not in MASK_MODES:
        problem = f"is of the mode {mask.mode}, expected one integer for each pixel, its class, not colors"
        return Findings(path, f"{path} {problem} (modes {', '.join(MASK_MODES)})")
    if mask.format in ("JPEG", "MPO"):
        problem = "is a JPEG file, whose compression changes the values at edges: expected PNG or TIFF"
        return Findings(path, f"{path} {problem}")
    if picture.size != mask.size:
        problem = f"is {mask}, expected the size of the picture, which is {picture}"
        if mask.size == picture.stored_size:
            problem += ORIENTATION_HINT
        return Findings(path, f"{path} {problem}")
    hidden_rotation = picture.has_hidden_rotation and mask.orientation != picture.orientation
    findings = Findings(path, hidden_rotation=hidden_rotation)
    if decode_mask:
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
    counts: list[tuple[str, np.ndarray]],
    read: PairReader,
    names: dict[int, str],
    source: str,
    training: bool,
    complete: bool,
) -> Iterator[str]:
    """Yields the problems of the masks of a split as a whole, and warns of classes that are missing in the sample.

    Args:
        counts: the name and `Findings.pixels` of each mask.
        names: of the classes.
        source: the split, for the messages.
        complete: whether `counts` has all masks of the data set.
    """
    *pixels, unlabeled = np.sum([pixels for _, pixels in counts], axis=0).tolist()
    present = [number for number, count in enumerate(pixels) if count > 0]
    # The ignored class has no pixels by definition.
    missing = [f"{n} ({names[n]})" for n, count in enumerate(pixels) if count == 0 and n != read.ignored]
    total = unlabeled + sum(pixels)
    text = (
        f"{source}: of {total:,} pixels in {len(counts)} masks, {unlabeled:,} ({unlabeled / total:.1%}) are not labeled "
        f"(stored as {read.unlabeled})"
    )
    expected = f"; expected the values {read.stored([0])[0]} to {read.stored([read.num_labels - 1])[0]} in masks"
    if not present:
        yield f"{text}: none has a class"
    elif len(present) == 1 and unlabeled > 0:
        lacking = f": no pixel is of class {first_of(missing)}" if missing else ""
        yield f"{text}, and all others are of class {present[0]} ({names[present[0]]}){lacking}{expected}"
    elif missing and training and complete:
        hint = ". Without --do_reduce_labels masks count from 0" if read.reduce_labels else ""
        yield f"{text}, and none is of class {first_of(missing)}{expected}, all of them{hint}"
    elif missing and training:
        logger.warning(f"{text}, and none is of class {first_of(missing)}")
    if present and (empty := [name for name, numbers in counts if not numbers[:-1].any()]):
        logger.warning(f"{source}: {len(empty)} of {len(counts)} masks have no labeled pixel: {first_of(empty)}")
    if training and read.ignored in range(read.num_labels):
        logger.warning(
            f"class {read.ignored} ({names[read.ignored]}) is semantic_loss_ignore_index: it is not trained"
        )
