"""Batches of a data set: in which order, and on which process.

The order of an epoch and the augmentation of each image depend on the seed, the epoch and the position in the epoch
alone. The number of workers and interruptions change nothing. Nor does the number of processes as long as the total
batch size of all processes stays the same, except for streams, which are divided among the processes. Therefore the main
thread of each process chooses the rows (`TrainingOrder`, `EvaluationOrder`), and the workers only decode and augment
them. The rows of a stream are undecoded files.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from PIL import Image as PILImage
from rednet.training.data.gpu_decoding import FileTransform
from rednet.training.data.headers import check_mode
from rednet.training.data.sources import Images
from rednet.training.data.transforms import TrainingTransform, open_image
from rednet.training.options.groups import ComputeOptions, TrainingDataOptions
from rednet.training.options.scripts import SegmentationConfig, TrainingConfig
from rednet.training.utils.randomness import seed_from
from torch.utils.data import DataLoader, Sampler, default_convert
from transformers import BaseImageProcessor


Result = TypeVar("Result")
RowLabels = Callable[[list[dict]], torch.Tensor]  # all labels of rows, (B, labels), filled up with -1


class TrainingOrder(Sampler):
    """Batch sampler of one process for training. `begin` chooses the epoch.

    A batch is a list of (key, row): the key of the image's random numbers (seed, epoch, position in the epoch), and an
    index or a row of a stream. Of the batches of an epoch, each process takes every `num_processes`-th. The images that
    do not fill a batch on all processes are left out, because they would weigh more in the gradient than others.

    Args:
        images: a data set, or a stream that is already shuffled.
        batch_size: of this process.
        num_images: the length of an epoch, which a stream does not have by itself; by default that of `images`.
        repeats: number of times that an image occurs in an epoch; of a stream, 1. The epoch keeps its length.

    Raises:
        ValueError: there are fewer images than one batch on all processes.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        process: int,
        num_processes: int,
        num_images: int | None = None,
        repeats: int = 1,
    ):
        self.images, self.batch_size, self.seed, self.repeats = images, batch_size, seed, repeats
        self.process, self.num_processes = process, num_processes
        self.global_batch = batch_size * num_processes
        self.num_images = len(images) if num_images is None else num_images
        if isinstance(images, IterableDataset):
            self.images = split_dataset_by_node(images, process, num_processes)
        if len(self) == 0:
            raise ValueError(
                f"per_device_train_batch_size is {batch_size} on {num_processes} processes, but there are only "
                f"{self.num_images} images to train on"
            )
        self.begin(epoch=0, position=0)

    def __len__(self) -> int:
        return self.num_images // self.global_batch

    def begin(self, epoch: int, position: int) -> None:
        """Makes the next iteration start at image `position` of `epoch`, counted over all processes."""
        self.epoch, self.first_batch = epoch, position // self.global_batch

    def __iter__(self) -> Iterator[list[tuple]]:
        stream = self.stream() if isinstance(self.images, IterableDataset) else None
        if stream is None:
            generator = torch.Generator().manual_seed(seed_from(self.seed, self.epoch))
            order = torch.randperm(self.num_images, generator=generator)
        for batch in range(self.first_batch, len(self)):
            start = (batch * self.num_processes + self.process) * self.batch_size
            positions = range(start, start + self.batch_size)
            rows = order[self.indices(batch)].tolist() if stream is None else itertools.islice(stream, self.batch_size)
            yield [((self.seed, self.epoch, position), row) for position, row in zip(positions, rows, strict=True)]

    def indices(self, batch: int) -> list[int]:
        """The indices of this process's images of a batch in the order of the epoch.

        Repeated images follow each other through the epoch, as in timm. Inside a batch of all processes, the first
        copies come first, then the second ones, and so on: with at least `repeats` processes, each copy of an image is
        on another process. All copies are in the same batch if its size is a multiple of `repeats`.
        """
        first = batch * self.global_batch
        numbers = sorted(range(first, first + self.global_batch), key=lambda number: number % self.repeats)
        own = slice(self.process * self.batch_size, (self.process + 1) * self.batch_size)
        return [number // self.repeats for number in numbers[own]]

    def stream(self) -> Iterator[dict]:
        """Yields the rows of this process from the first batch on. Earlier files are read, but not decoded.

        If the number of files allows it, each process reads whole files. A process whose files contain less than its
        share reads them again.
        """
        self.images.set_epoch(self.epoch)
        share, count = len(self) * self.batch_size, 0
        while count < share:
            before = count
            for row in itertools.islice(self.images, share - count):
                count += 1
                if count > self.first_batch * self.batch_size:
                    yield row
            if count < share and (self.num_processes == 1 or 2 * (count - before) < share):
                raise ValueError(
                    f"the stream ended after {count - before} images, expected {share} for each of "
                    f"{self.num_processes} processes: set --max_train_samples to the number of images of an epoch"
                )


def training_order(
    images: Images, config: TrainingConfig | SegmentationConfig, process: int, num_processes: int, repeats: int = 1
) -> TrainingOrder:
    """The order of `images`, which may be a stream."""
    num_images = epoch_length(images, config)
    if isinstance(images, IterableDataset):
        images = images.shuffle(config.seed, buffer_size=config.shuffle_buffer_size)
    batch_size = config.per_device_train_batch_size
    return TrainingOrder(images, batch_size, config.seed, process, num_processes, num_images, repeats)


def epoch_length(images: Images, config: TrainingDataOptions) -> int:
    """The number of images of an epoch.

    Raises:
        ValueError: neither a stream nor the options give a number.
    """
    if isinstance(images, Dataset):
        return len(images)
    split = images.info.splits and images.info.splits.get(config.train_split)
    lengths = [split.num_examples if split else None, config.max_train_samples]
    if not any(lengths):
        raise ValueError("the length of this stream is unknown: set --max_train_samples to the images of an epoch")
    return min(filter(None, lengths))


class EvaluationOrder(Sampler):
    """Batch sampler of one process for evaluation, over all images in their order.

    A batch is a list of (counts, row): whether the row counts in the results, and an index or a row of a stream. Every
    process gets the same number of batches of the same size, because processes gather their results; rows that fill up
    the last batches do not count. Every process reads the whole stream, but decodes only its own rows.
    """

    def __init__(self, images: Images, batch_size: int, process: int, num_processes: int):
        self.images, self.batch_size, self.process, self.num_processes = images, batch_size, process, num_processes

    def __len__(self) -> int:
        if isinstance(self.images, IterableDataset):
            raise TypeError("the length of a stream is unknown")  # TypeError is what a progress bar expects
        return math.ceil(len(self.images) / (self.batch_size * self.num_processes))

    def __iter__(self) -> Iterator[list[tuple]]:
        rows = self.images if isinstance(self.images, IterableDataset) else range(len(self.images))
        round_size, batch, first, number = self.batch_size * self.num_processes, [], None, 0
        for number, row in enumerate(rows, 1):
            first = row if number == 1 else first
            if (number - 1) // self.batch_size % self.num_processes == self.process:
                batch.append((True, row))
            if number % round_size == 0:
                yield batch
                batch = []
        if number == 0:
            raise ValueError("there are no images to evaluate on")
        if number % round_size != 0:
            yield batch + [(False, first)] * (self.batch_size - len(batch))


class TrainingBatches(torch.utils.data.Dataset):
    """Batches for `TrainingOrder`: `pixel_values`, what `transform` makes of the images, and `labels` (B,).

    With `TrainingTransform`, `pixel_values` is uint8 (B, 3, size, size). `normalize` makes floats of the pixels on the
    device, so that workers transfer bytes.

    Args:
        size: returns the height and width of the images of an epoch.
    """

    def __init__(self, images: Images, transform: TrainingTransform, num_labels: int, size: Callable[[int], int]):
        self.images, self.transform, self.num_labels, self.size = images, transform, num_labels, size

    def __getitems__(self, batch: list[tuple]) -> dict[str, Any]:
        keys = [key for key, _ in batch]
        size = self.size(keys[0][1])
        rows = fetch(self.images, [row for _, row in batch])
        images = [decode(row, partial(self.transform, key=key, size=size)) for row, key in zip(rows, keys)]
        return {"pixel_values": self.transform.collate(images), "labels": stack_labels(rows, self.num_labels)}


def size_of_epoch(sizes: list[int], num_epochs: float, epoch: int) -> int:
    """The size of the training images of an epoch: each of `sizes` has an equal share of the epochs."""
    return sizes[min(int(epoch * len(sizes) / num_epochs), len(sizes) - 1)]


class EvaluationBatches(torch.utils.data.Dataset):
    """Batches for `EvaluationOrder`: the output of the image processor, as users will run the model, and `labels` (B,).

    The label of a row that does not count is -1. With `real_labels`, `labels` is (B, labels), filled up with -1.
    """

    def __init__(
        self, images: Images, processor: BaseImageProcessor, num_labels: int, real_labels: RowLabels | None = None
    ):
        self.images, self.processor, self.num_labels, self.real_labels = images, processor, num_labels, real_labels

    def __getitems__(self, batch: list[tuple]) -> dict[str, torch.Tensor]:
        counts = torch.tensor([counts for counts, _ in batch])
        rows = fetch(self.images, [row for _, row in batch])
        images = [decode(row, lambda image: image.convert("RGB")) for row in rows]
        labels = self.real_labels(rows) if self.real_labels else stack_labels(rows, self.num_labels)
        labels[~counts] = -1
        return {**self.processor(images, return_tensors="pt"), "labels": labels}


def fetch(images: Images, rows: Sequence) -> list[dict]:
    """The rows of a batch. Those of a stream are already there, those of a data set are given by index."""
    return list(rows) if isinstance(images, IterableDataset) else images.__getitems__(list(rows))


def decode(row: dict, transform: Callable[[PILImage.Image], Result], column: str = "image") -> Result:
    """Opens and transforms the picture in `column` of a row.

    Raises:
        ValueError: it is missing or cannot be read. The message has its path.
    """
    if row[column] is None:
        raise ValueError(f"a row has no {column}")
    name = row[column]["path"] or "(without a path)"
    try:
        image = open_image(row[column])
        if column == "image":
            check_mode(image.mode)
        return transform(image)
    except Exception as error:  # Pillow raises errors of many types for damaged files, even struct.error
        raise ValueError(f"the {column} {name} cannot be read: {type(error).__name__}: {error}") from error


def stack_labels(rows: list[dict], num_labels: int) -> torch.Tensor:
    """The labels of `rows` as int64 (B,).

    Raises:
        ValueError: a label is not a class of the model. On a GPU, the loss would only report a failed assertion.
    """
    labels = [row["label"] for row in rows]
    for label in labels:
        if label is None or not 0 <= label < num_labels:
            raise ValueError(f"the label of an image is {label}, but the model has {num_labels} classes, from 0 on")
    return torch.tensor([int(label) for label in labels])


def training_loader(
    images: Images, config: TrainingConfig, num_labels: int, process: int, num_processes: int
) -> DataLoader:
    """Loader of `TrainingBatches`. `loader.batch_sampler.begin` chooses the epoch of the next iteration."""
    images = images.cast_column("image", Image(decode=False))
    order = training_order(images, config, process, num_processes, config.repeated_augmentation)
    size = partial(size_of_epoch, config.train_sizes, config.num_train_epochs)
    transform = (FileTransform if config.decode_on_gpu else TrainingTransform)(config, config.image_mean)
    return make_loader(TrainingBatches(images, transform, num_labels, size), order, config)


def evaluation_loader(
    images: Images,
    config: ComputeOptions,
    processor: BaseImageProcessor,
    num_labels: int,
    process: int,
    num_processes: int,
    real_labels: RowLabels | None = None,
) -> DataLoader:
    """Loader of `EvaluationBatches`."""
    images = images.cast_column("image", Image(decode=False))
    order = EvaluationOrder(images, config.per_device_eval_batch_size, process, num_processes)
    return make_loader(EvaluationBatches(images, processor, num_labels, real_labels), order, config)


def make_loader(batches: torch.utils.data.Dataset, order: Sampler, config: ComputeOptions) -> DataLoader:
    """A loader of datasets that return whole batches from `__getitems__`."""
    return DataLoader(
        batches,
        batch_sampler=order,
        collate_fn=default_convert,  # they are batches already
        num_workers=config.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.dataloader_num_workers > 0,
    )
