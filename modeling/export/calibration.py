"""Pictures from which a quantizer learns the ranges of activations."""

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from PIL.Image import Image


SAMPLES, BATCH_SIZE = 256, 16
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def calibration_batches(source: str, model: str) -> list[Tensor]:
    """
    Reads up to 256 pictures, chosen at random, and prepares them with the image processor of a model.

    Args:
        source: a folder with pictures, in subfolders as well; a data set that `datasets` saved to a folder; or the Hub
            id of a data set. Of a data set, the training split is used if there is one.
        model: folder or Hub repository of the model.

    Returns:
        Pixel values, (16, C, H, W) each. The last batch may be smaller, and so may others if the processor does not
        resize and the pictures have several sizes.

    Raises:
        ModuleNotFoundError: `datasets` or Pillow is not installed.
        OSError: the model has no image processor.
        ValueError: there are no pictures in `source`, or one of them cannot be read.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model)
    paths = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES)
    pictures = map(_read_file, _choose(paths)) if paths else _read_data_set(source)
    images = [torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"]) for picture in pictures]
    batches: list[Tensor] = []
    for _, group in itertools.groupby(images, key=lambda image: image.shape):
        batches += torch.cat(list(group)).split(BATCH_SIZE)
    return batches


def _choose(candidates: Sequence) -> list:
    return random.Random(0).sample(candidates, min(SAMPLES, len(candidates)))


def _read_file(path: Path) -> "Image":
    """Opens a picture as the pipeline of Transformers does: with its EXIF orientation, as RGB."""
    from transformers.image_utils import load_image

    try:
        return load_image(str(path))
    except Exception as error:  # Pillow has no common base class of its errors
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _read_data_set(source: str) -> "Iterator[Image]":
    import datasets
    from transformers.image_utils import load_image

    saved = Path(source, "dataset_dict.json").is_file() or Path(source, "state.json").is_file()
    if Path(source).is_dir() and not saved:
        raise ValueError(f"{source} has no pictures ({', '.join(sorted(SUFFIXES))}), and no data set of `datasets`")
    data = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    if isinstance(data, datasets.DatasetDict):
        data = data["train"] if "train" in data else next(iter(data.values()))
    columns = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"{source} has no column of pictures, only {sorted(data.features)}")
    return (load_image(row[columns[0]]) for row in data.select(_choose(range(len(data)))))
