"""Packs pictures: resized once, as JPEG, in parquet files that `datasets` loads without decoding.

A shard is one such file, with pictures that follow each other in a split. Its content follows from these pictures and
from the options alone, so that any process may write it, at any time. Its footer has the number of pictures that it was
made from, and those that are damaged. Its pages have checksums, by which a resumed run knows that it is complete.
"""

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow
import torch
from datasets import Features, IterableDataset
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps
from pyarrow import parquet
from rednet.training.data.headers import check_mode
from rednet.training.data.sources import LABELS_PER_BATCH, Images, class_names
from rednet.training.data.transforms import read_file
from rednet.training.options.scripts import PackOptions
from torch.utils.data import DataLoader


FOOTER = b"rednet.pack"
# A large JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, if that is still so many times as large as the packed
# picture. With 1 instead, the pixels of detailed photographs changed more by it than by the compression.
DECODED = 1.5
ROWS_PER_GROUP = 100  # a stream reads a group at a time; `datasets` writes images in groups of the same size

Task: TypeAlias = tuple[str, int, Sequence]  # the split, the number of the shard, and its rows


@dataclass
class Shard:
    """What a shard has: the number of its `pictures`, and of the rows of the source that it was made from."""

    split: str
    rows: int
    pictures: int
    num_bytes: int
    damaged: list[dict]  # the pictures that were left out: `row` in the shard, `path` and `error`


def pack_picture(content: bytes, shortest_edge: int, quality: int) -> bytes:
    """A picture with a shorter edge of at most `shortest_edge` pixels, upright, as a JPEG file in gray or RGB.

    A picture that has this size stays as it is, byte for byte, if it is a JPEG file, or a PNG file that is smaller than
    the JPEG file (icons, digits). Either is decoded, because its header does not show whether it is complete.

    Raises:
        ValueError: it has more than 8 bits for each value.
        Exception: it cannot be decoded. Pillow raises errors of many types.
    """
    image = Image.open(io.BytesIO(content))
    check_mode(image.mode)
    size = fitted(image.size, shortest_edge)
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    unchanged = size == image.size and upright
    image.draft(None, (math.ceil(DECODED * size[0]), math.ceil(DECODED * size[1])))
    image.load()
    if unchanged and image.format == "JPEG" and image.mode != "CMYK":
        return content
    turned = ImageOps.exif_transpose(image)
    if turned.size != image.size:
        size = size[::-1]
    picture = turned if turned.mode == "L" else turned.convert("RGB")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=quality, comment=b"")
    return content if unchanged and image.format == "PNG" and len(content) <= packed.tell() else packed.getvalue()


def fitted(size: tuple[int, int], shortest_edge: int) -> tuple[int, int]:
    """The (width, height) of a picture after its shorter edge is resized to `shortest_edge`, if it is longer."""
    scale = min(shortest_edge / min(size), 1)
    return round(size[0] * scale), round(size[1] * scale)


def tasks(images: Images, split: str, pictures_per_shard: int) -> Iterator[Task]:
    """The shards of a split. Rows are indices, or the undecoded rows of a stream."""
    if isinstance(images, IterableDataset):
        rows = iter(images)
        for number in itertools.count():
            if not (part := list(itertools.islice(rows, pictures_per_shard))):
                return
            yield split, number, part
    count = num_shards(len(images), pictures_per_shard)
    for number in range(count):
        yield split, number, range(len(images) * number // count, len(images) * (number + 1) // count)


def num_shards(pictures: int, pictures_per_shard: int) -> int:
    """Many shards are a multiple of 8 or 64, because each process of a training then streams its own shards."""
    count = math.ceil(pictures / pictures_per_shard)
    multiple = 64 if count > 64 else 8 if count > 8 else 1
    return math.ceil(count / multiple) * multiple


class Packer(torch.utils.data.Dataset):
    """Writes shards to `folder`: `packer[task]` is the shard of a task, or the error that ends the run."""

    def __init__(self, splits: dict[str, Images], config: PackOptions, folder: Path):
        self.splits, self.config, self.folder = splits, config, folder

    def __getitem__(self, task: Task) -> Shard | OSError:
        split, number, rows = task
        path = self.folder / f"{split}-{number:05}.parquet"
        try:
            shard = read_shard(path, split) if path.exists() else None
            if shard is None or shard.rows != len(rows):
                self.write(path, split, rows)
                shard = read_shard(path, split)
                assert shard is not None, f"{path} differs from what was written to it"
            return shard
        except OSError as error:  # as a value: a loader would add the traceback of its worker to the message
            return error

    def write(self, path: Path, split: str, rows: Sequence) -> None:
        """Writes a shard to a temporary path, which is then renamed.

        Raises:
            OSError: a file of the source cannot be read, or the shard cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        features = packed_features(self.splits[split])
        damaged: list[dict] = []
        settings = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
        with open(temporary, "wb") as file:
            with parquet.ParquetWriter(file, features.arrow_schema, compression="none", **settings) as writer:
                for start in range(0, len(rows), ROWS_PER_GROUP):
                    group = range(start, min(start + ROWS_PER_GROUP, len(rows)))
                    packed = [self.pack(split, rows[row], row, damaged) for row in group]
                    table = pyarrow.Table.from_pylist([row for row in packed if row], features.arrow_schema)
                    if len(table):
                        writer.write_table(table)
                footer = {"rows": len(rows), "damaged": damaged}
                writer.add_key_value_metadata({FOOTER: json.dumps(footer)})
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave an empty file under the final name
        temporary.replace(path)

    def pack(self, split: str, row: int | dict, number: int, damaged: list[dict]) -> dict | None:
        """A packed row; None if its picture is damaged, which is then in `damaged`.

        Raises:
            OSError: its file cannot be read: the disk or the network is at fault, not the picture.
        """
        row = self.splits[split][row] if isinstance(row, int) else row
        stored = row["image"]
        name = os.path.basename(stored["path"] or "") if stored else ""
        content = read_file(stored) if stored else b""
        try:
            content = pack_picture(content, self.config.shortest_edge, self.config.jpeg_quality)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises errors of many types for damaged files, even struct.error
            reason = f"{type(error).__name__}: {error}" if stored else "there is no picture"
            damaged.append({"row": number, "path": name, "error": reason})
            return None
        return {"image": {"bytes": content, "path": name}, "label": row["label"]}


def packed_features(images: Images) -> Features:
    return Features({"image": ImageFeature(), "label": images.features["label"]})


def read_shard(path: Path, split: str) -> Shard | None:
    """Reads a shard and compares all of it with its checksums. None if it differs, or is not a shard."""
    pictures = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                pictures += len(file.read_row_group(group))
            footer = json.loads(file.metadata.metadata[FOOTER])
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    return Shard(split, footer["rows"], pictures, path.stat().st_size, footer["damaged"])


def pack(splits: dict[str, Images], config: PackOptions, folder: Path) -> Iterator[Shard]:
    """Writes the shards of all splits to `folder` that are not there yet. Yields all of them, in order.

    Raises:
        OSError: a file of the source cannot be read, or a shard cannot be written.
    """
    splits = {split: images.cast_column("image", ImageFeature(decode=False)) for split, images in splits.items()}
    order = itertools.chain.from_iterable(
        tasks(images, split, config.pictures_per_shard) for split, images in splits.items()
    )
    # A loader ends its workers when this process is killed. They get one shard ahead, because rows of a stream are large.
    workers = config.preprocessing_num_workers
    loader = DataLoader(
        Packer(splits, config, folder),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        prefetch_factor=1 if workers else None,
    )
    for shard in loader:
        if isinstance(shard, OSError):
            raise shard
        yield shard


def hash_pictures(images: Images) -> str | None:
    """A hash of the names, labels and classes of all pictures, in their order. None for a stream, whose names are read
    with its pictures."""
    if isinstance(images, IterableDataset):
        return None
    columns = images.cast_column("image", ImageFeature(decode=False)).flatten()
    columns = columns.select_columns(["image.path", "label"]).with_format("arrow")  # without the files
    digest = hashlib.sha256(json.dumps(class_names(images)).encode())
    for batch in columns.iter(LABELS_PER_BATCH):
        names = [os.path.basename(path or "") for path in batch["image.path"].to_pylist()]
        digest.update(json.dumps([names, batch["label"].to_pylist()]).encode())
    return digest.hexdigest()
