"""Data sets for transformers.Trainer, which draws rows by their numbers."""

from collections.abc import Sequence
from functools import partial

import torch
from datasets import Dataset, Image
from rednet.training.data.batches import EvaluationBatches, TrainingBatches, size_of_epoch
from rednet.training.data.transforms import TrainingTransform
from rednet.training.options.finetune import FinetuneConfig
from transformers import BaseImageProcessor


class TrainingRows(TrainingBatches):
    """Augmented batches. The random numbers of an image follow from seed, epoch and row."""

    epoch = 0

    def __init__(self, images: Dataset, config: FinetuneConfig, mean: Sequence[float], num_labels: int):
        assert config.image_size is not None  # finetune.py sets that of the image processor
        images = images.cast_column("image", Image(decode=False))
        size = partial(size_of_epoch, config.train_image_size or [config.image_size], config.num_train_epochs)
        super().__init__(images, TrainingTransform(config, mean), num_labels, size)
        self.seed = config.seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return super().__getitems__([((self.seed, self.epoch, row), row) for row in rows])


class EvaluationRows(EvaluationBatches):
    """Batches as the image processor makes them."""

    def __init__(self, images: Dataset, processor: BaseImageProcessor, num_labels: int):
        super().__init__(images.cast_column("image", Image(decode=False)), processor, num_labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return super().__getitems__([(True, row) for row in rows])
