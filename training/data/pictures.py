"""Pictures to predict on: all files of a folder, or a split of a data set, in shards of consecutive rows.

Labels are not needed. A picture that cannot be read does not end the run: its row has the error.
"""

import itertools
import os
from collections.abc import Collection, Iterator

import torch
from datasets import Dataset, Features, Image, IterableDataset
from PIL import UnidentifiedImageError
from rednet.training.data.batches import fetch
from rednet.training.data.class_folders import SUFFIXES
from rednet.training.data.headers import check_mode
from rednet.training.data.problems import name_problem
from rednet.training.data.sources import Images, read_source
from rednet.training.data.transforms import open_image
from rednet.training.options.groups import DataOptions
from torch.utils.data import Sampler
from transformers import BaseImageProcessor


def list_pictures(folder: str) -> list[str]:
    """The paths of all pictures at any depth, in sorted order. Links are followed; hidden files are left out.

    Raises:
        ValueError: a link leads to a folder that contains it, a name is not UTF-8, or there are no pictures.
        OSError: a folder cannot be read.
    """
    paths = list(_below(folder, ()))
    if not paths:
        raise ValueError(f"{folder} has no pictures. A folder that holds a data set needs the name of a split")
    return paths


def _below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder} is a link to {real}, which contains it")
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    for entry in visible:
        if entry.is_dir():
            yield from _below(entry.path, (*above, real))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            if problem := name_problem(entry.path):
                raise ValueError(problem)
            yield entry.path


def pictures_of(paths: list[str]) -> Dataset:
    """A data set of files, with the column `image`."""
    return Dataset.from_dict({"image": paths}, Features({"image": Image(decode=False)}))


def read_split(data: DataOptions) -> Images:
    """The pictures of `validation_split` of a data set, not decoded, with the column `image`.

    Raises:
        ValueError: the split or the column does not exist, or the column holds no pictures.
    """
    splits, column = read_source(data), data.image_column_name
    if data.validation_split not in splits:
        raise ValueError(f"split is {data.validation_split!r}, but {data.source} has {sorted(splits)}")
    split = splits[data.validation_split]
    features = split.features or Features()
    if column not in features:
        raise ValueError(f"image_column_name is {column!r}, but {data.source} has the columns {sorted(features)}")
    if not isinstance(features[column], Image):
        raise ValueError(f"{column} holds {features[column]}, expected an Image")
    split = split.cast_column(column, Image(decode=False)).select_columns([column])
    return split if column == "image" else split.rename_column(column, "image")


class ShardOrder(Sampler):
    """Batch sampler of one process. Shard n has the rows from `n * rows_per_shard` on.

    Of the shards that are not done, each process takes every `num_processes`-th. A batch is a list of (number of the
    row, row), the latter an index or a row of a stream. It never crosses the border of a shard, so that batches depend
    neither on the number of processes nor on interruptions. Every process reads the whole stream, but decodes only its
    own rows.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        rows_per_shard: int,
        done: Collection[int],
        process: int,
        num_processes: int,
    ):
        self.images, self.batch_size, self.rows_per_shard = images, batch_size, rows_per_shard
        self.done, self.process, self.num_processes = done, process, num_processes

    def __iter__(self) -> Iterator[list[tuple]]:
        rows = self.images if isinstance(self.images, IterableDataset) else range(len(self.images))
        shards = itertools.groupby(enumerate(rows), lambda numbered: numbered[0] // self.rows_per_shard)
        missing = 0
        for shard, part in shards:
            if shard not in self.done:
                if missing % self.num_processes == self.process:
                    while batch := list(itertools.islice(part, self.batch_size)):
                        yield batch
                missing += 1

    def count(self) -> int | None:
        """The number of pictures of this process, None for a stream."""
        if isinstance(self.images, IterableDataset):
            return None
        starts = range(0, len(self.images), self.rows_per_shard)
        missing = [start for shard, start in enumerate(starts) if shard not in self.done]
        mine = missing[self.process :: self.num_processes]
        return sum(min(self.rows_per_shard, len(self.images) - start) for start in mine)


class PictureBatches(torch.utils.data.Dataset):
    """Batches for `ShardOrder`: `row`, `path` and `error` of each picture, and `pixel_values` of those without an error.

    `path` is None if the data set does not store it.
    """

    def __init__(self, images: Images, processor: BaseImageProcessor):
        self.images, self.processor = images, processor

    def __getitems__(self, batch: list[tuple]) -> dict:
        stored = [row["image"] for row in fetch(self.images, [row for _, row in batch])]
        pixels: list[torch.Tensor] = []
        errors: list[str | None] = []
        for picture in stored:
            try:
                pixels.append(self.read(picture))
                errors.append(None)
            except Exception as error:  # Pillow raises errors of many types for damaged files, even struct.error
                errors.append(describe(error))
        return {
            "row": [number for number, _ in batch],
            "path": [picture and picture["path"] for picture in stored],
            "error": errors,
            "pixel_values": torch.cat(pixels) if pixels else torch.empty(0),
        }

    def read(self, picture: dict | None) -> torch.Tensor:
        """The output of the image processor for one picture, (1, 3, height, width)."""
        if picture is None:
            raise ValueError("there is no picture")
        image = open_image(picture)
        check_mode(image.mode)
        return self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]


def describe(error: Exception) -> str:
    """The text of an error. Pillow's own for files that are no pictures has an address in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "UnidentifiedImageError: the file is not a picture"
    return f"{type(error).__name__}: {error}"
