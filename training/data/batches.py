"""From a data set to batches: in which order, and on which process.

The order of an epoch, and what happens to the image at each position of it, follow from seed, epoch and position
alone: the number of workers and interruptions change nothing, and neither does the number of processes as long as the
batch of all of them together stays. That is why the main process deals out the images (`TrainingOrder`,
`EvaluationOrder`) and the workers only decode and augment them; of a stream, the undecoded files themselves are dealt.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from datasets import Dataset, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from rednet.training.data.transforms import TrainingTransform, open_image
from rednet.training.options.groups import TrainingConfig
from rednet.training.utils.randomness import seed_from
from torch.utils.data import DataLoader, Sampler, default_convert
from transformers import BaseImageProcessor


class TrainingOrder(Sampler):
    """The batches of one process, as lists of (key of the image's randomness, row). `begin` says of which epoch.

    Each process takes every `num_processes`-th batch. What does not fill a batch of all processes is left out, because
    a smaller batch would weigh its images more than the others.

    Raises:
        ValueError: there are fewer images than one batch of all processes, or nobody knows how many there are.
    """

    def __init__(self, images: Dataset | IterableDataset, config: TrainingConfig, process: int, num_processes: int):
        self.seed, self.batch_size = config.seed, config.per_device_train_batch_size
        self.process, self.num_processes = process, num_processes
        self.global_batch = self.batch_size * num_processes
        self.num_images = epoch_length(images, config)
        self.images = images
        if isinstance(images, IterableDataset):
            shuffled = images.shuffle(config.seed, buffer_size=config.shuffle_buffer_size)
            self.images = split_dataset_by_node(shuffled, process, num_processes)
        if len(self) == 0:
            raise ValueError(
                f"per_device_train_batch_size is {self.batch_size} on {num_processes} processes, but there are only "
                f"{self.num_images} images to train on"
            )
        self.begin(epoch=0, position=0)

    def __len__(self) -> int:
        return self.num_images // self.global_batch

    def begin(self, epoch: int, position: int) -> None:
        """The next iteration goes over `epoch` from the image at `position` (of all processes together) on."""
        self.epoch, self.first_batch = epoch, position // self.global_batch

    def __iter__(self) -> Iterator[list[tuple]]:
        rows = self.stream() if isinstance(self.images, IterableDataset) else None
        if rows is None:
            generator = torch.Generator().manual_seed(seed_from(self.seed, self.epoch))
            order = torch.randperm(self.num_images, generator=generator)
        for batch in range(self.first_batch, len(self)):
            start = (batch * self.num_processes + self.process) * self.batch_size
            positions = range(start, start + self.batch_size)
            mine = (
                order[start : start + self.batch_size].tolist()
                if rows is None
                else itertools.islice(rows, self.batch_size)
            )
            yield [((self.seed, self.epoch, position), row) for position, row in zip(positions, mine, strict=True)]

    def stream(self) -> Iterator[dict]:
        """This process's rows from the first batch on: the files before are read, but not decoded.

        Processes deal with whole files where their number allows it. One whose files hold less than its share begins
        them again.
        """
        self.images.set_epoch(self.epoch)
        share, had = len(self) * self.batch_size, 0
        while had < share:
            before = had
            for row in itertools.islice(self.images, share - had):
                had += 1
                if had > self.first_batch * self.batch_size:
                    yield row
            if had < share and (self.num_processes == 1 or 2 * (had - before) < share):
                raise ValueError(
                    f"the stream ended after {had - before} images, expected {share} for each of {self.num_processes} "
                    "processes: --max_train_samples says how many images an epoch has"
                )


def epoch_length(images: Dataset | IterableDataset, config: TrainingConfig) -> int:
    if isinstance(images, Dataset):
        return len(images)
    known = images.info.splits and images.info.splits.get(config.train_split)
    lengths = [known.num_examples if known else None, config.max_train_samples]
    if not any(lengths):
        raise ValueError(
            "this stream does not say how many images it has: give --max_train_samples, those of an epoch"
        )
    return min(filter(None, lengths))


class EvaluationOrder(Sampler):
    """The batches of one process, as lists of (whether the row counts, row), over all images in their order.

    Every process gets as many batches as the others, all of the same size, because they gather their results; rows
    that fill up the last ones do not count. A stream is read by every process, and decoded in parts.
    """

    def __init__(self, images: Dataset | IterableDataset, batch_size: int, process: int, num_processes: int):
        self.images, self.batch_size, self.process, self.num_processes = images, batch_size, process, num_processes

    def __len__(self) -> int:
        if isinstance(self.images, IterableDataset):
            raise TypeError("nobody knows how long a stream is")  # what a progress bar expects
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
    """Makes the batches that `TrainingOrder` asks for: `pixel_values`, uint8 (B, 3, size, size), and `labels` (B,).

    Bytes travel; `normalize` makes them floats where the model is.
    """

    def __init__(self, images: Dataset | IterableDataset, config: TrainingConfig, num_labels: int):
        self.images, self.num_labels, self.transform = images, num_labels, TrainingTransform(config)

    def __getitems__(self, places: list[tuple]) -> dict[str, torch.Tensor]:
        keys, rows = zip(*places)
        rows = fetch(self.images, rows)
        pictures = [decode(row, lambda image, key=key: self.transform(image, key)) for row, key in zip(rows, keys)]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # channels-last, as PIL has them
        return {"pixel_values": images, "labels": checked_labels(rows, self.num_labels)}


class EvaluationBatches(torch.utils.data.Dataset):
    """Makes the batches that `EvaluationOrder` asks for, as the image processor does: what is measured is what users
    will run. The label of a row that does not count is -1."""

    def __init__(self, images: Dataset | IterableDataset, processor: BaseImageProcessor, num_labels: int):
        self.images, self.processor, self.num_labels = images, processor, num_labels

    def __getitems__(self, places: list[tuple]) -> dict[str, torch.Tensor]:
        counts, rows = zip(*places)
        rows = fetch(self.images, rows)
        pictures = [decode(row, lambda image: image.convert("RGB")) for row in rows]
        labels = checked_labels(rows, self.num_labels).where(torch.tensor(counts), -1)
        return {**self.processor(pictures, return_tensors="pt"), "labels": labels}


def fetch(images: Dataset | IterableDataset, rows: tuple) -> list[dict]:
    """The rows themselves: of a stream they came along."""
    return list(rows) if isinstance(images, IterableDataset) else images.__getitems__(list(rows))


def decode(row: dict, transform, column: str = "image"):
    """Opens and transforms the image of a row; one that cannot be read is named."""
    if row[column] is None:
        raise ValueError(f"a row has no {column}")
    name = row[column]["path"] or "(without a path)"
    try:
        image = open_image(row[column])
        if column == "image" and image.mode[0] in "IF":  # 16 bits and more, which `convert` would cut off
            raise OSError(f"its pixels are of the mode {image.mode}, expected 8 bits for each value")
        return transform(image)
    except Exception as error:  # Pillow answers a damaged file with a dozen of them, struct.error for one
        raise ValueError(f"the {column} {name} cannot be read: {type(error).__name__}: {error}") from error


def checked_labels(rows: list[dict], num_labels: int) -> torch.Tensor:
    for label in (row["label"] for row in rows):
        # On a GPU, the loss would only say that an assertion failed.
        if label is None or not 0 <= label < num_labels:
            raise ValueError(f"the label of an image is {label}, but the model has {num_labels} classes, from 0 on")
    return torch.tensor([int(row["label"]) for row in rows])


def training_loader(images, config: TrainingConfig, num_labels: int, process: int, num_processes: int) -> DataLoader:
    """Batches of `TrainingBatches`; `loader.batch_sampler.begin` chooses the epoch of the next iteration."""
    images = images.cast_column("image", Image(decode=False))
    order = TrainingOrder(images, config, process, num_processes)
    return make_loader(TrainingBatches(images, config, num_labels), order, config)


def evaluation_loader(
    images, config: TrainingConfig, processor: BaseImageProcessor, num_labels: int, process: int, num_processes: int
) -> DataLoader:
    """Batches of `EvaluationBatches`."""
    images = images.cast_column("image", Image(decode=False))
    if isinstance(images, IterableDataset) and config.max_eval_samples is not None:
        images = images.take(config.max_eval_samples)
    order = EvaluationOrder(images, config.per_device_eval_batch_size, process, num_processes)
    return make_loader(EvaluationBatches(images, processor, num_labels), order, config)


def make_loader(batches: torch.utils.data.Dataset, order: Iterable, config: TrainingConfig) -> DataLoader:
    return DataLoader(
        batches,
        batch_sampler=order,
        collate_fn=default_convert,  # they are batches already
        num_workers=config.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.dataloader_num_workers > 0,
    )
