"""Groups of options that several scripts have.

An option has the name that it has in run_image_classification_no_trainer.py of Transformers, if it exists there.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rednet.training.options.types import (
    BelowOne,
    Count,
    Deviations,
    Folder,
    Fraction,
    Means,
    Natural,
    Scale,
    Seed,
    Sizes,
    StepsOrEpoch,
)
from rednet.training.utils.cpus import available_cpus


WORKERS = min(4, available_cpus())


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of options, with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def with_default(group: type, name: str, default: Any) -> Any:
    """The option `name` of a group with another default and the same help text."""
    return option(default, next(field.metadata["help"] for field in fields(group) if field.name == name))


@dataclass
class ModelOptions:
    model_name_or_path: str | None = option(None, "Pretrained weights to start from: a folder or a Hub id.")
    config_name: str | None = option(
        None, "Architecture to train from scratch: a packaged name (rednet-50), a config.json, a folder or a Hub id."
    )
    ignore_mismatched_sizes: bool = option(
        False,
        "Load pretrained weights of a model with other classes. Layers whose shapes differ are initialized randomly.",
    )
    drop_path_rate: BelowOne | None = option(
        None,
        "Stochastic depth: the probability to leave out the last bottleneck for an image; it grows linearly from 0 in the "
        "first one. By default that of the architecture.",
    )

    @property
    def changes(self) -> dict[str, float]:
        """The values of the model's configuration that the options replace."""
        return {} if self.drop_path_rate is None else {"drop_path_rate": self.drop_path_rate}


@dataclass
class SeedOptions:
    seed: Seed = option(42, "Seed of all random numbers.")


@dataclass
class DataOptions(SeedOptions):
    dataset_name: str = option("", "Data set to load with the library datasets: a Hub id or a local folder.")
    dataset_config_name: str | None = option(None, "Configuration of the data set, if it has several.")
    train_dir: str | None = option(
        None, "Training images, instead of dataset_name: a folder that contains one folder of images for each class."
    )
    validation_dir: str | None = option(None, "Validation images, in folders as in train_dir.")
    train_split: str = option("train", "Name of the training split.")
    validation_split: str = option("validation", "Name of the split to evaluate on.")
    train_val_split: Fraction | None = option(
        None, "Fraction of the training images to use for validation, if there is no validation split."
    )
    image_column_name: str = option("image", "Name of the column that contains the images.")
    label_column_name: str = option("label", "Name of the column that contains the labels.")
    max_eval_samples: Count | None = option(
        None, "Maximum number of images to evaluate on: a random sample, or the first ones of a stream."
    )
    streaming: bool = option(False, "Stream the images from the Hub or from files, without storing them on disk.")

    @property
    def source(self) -> str:
        """The Hub id or the folder that the images come from."""
        return self.dataset_name or self.train_dir or self.validation_dir or ""


@dataclass
class TrainingDataOptions(DataOptions):
    max_train_samples: Count | None = option(
        None, "Maximum number of images to train on: a random sample, or the length of an epoch of a stream."
    )


@dataclass
class StreamOptions:
    shuffle_buffer_size: Count = option(
        10_000, "Number of streamed images to shuffle in memory, undecoded (about 0.1 MB each for ImageNet)."
    )


@dataclass
class ComputeOptions:
    per_device_eval_batch_size: Count = option(64, "Evaluation batch size of each process.")
    dataloader_num_workers: Natural = option(WORKERS, "Number of worker processes that decode and augment images.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Data type of mixed precision.")


@dataclass
class NormalizationOptions:
    image_mean: Means = option([0.485, 0.456, 0.406], "Mean of each channel, for pixel values from 0 to 1.")
    image_std: Deviations = option(
        [0.229, 0.224, 0.225], "Standard deviation of each channel, for pixel values from 0 to 1."
    )


@dataclass
class PictureOptions(NormalizationOptions):
    image_size: Count = option(224, "Height and width of the model's input, in pixels.")
    train_image_size: Sizes | None = option(
        None,
        "Height and width of the training images; by default image_size. Several sizes, such as 128 160 192 224, are for "
        "progressive resizing: each is used for an equal share of num_train_epochs, in this order.",
    )
    eval_image_size: Count | None = option(
        None, "Height and width of the images in evaluation and of the saved image processor; by default image_size."
    )
    crop_pct: Scale = option(
        0.875,
        "For evaluation, an image is resized to eval_image_size / crop_pct, and its center is cropped to "
        "eval_image_size. From 384 on, it is resized to eval_image_size without a crop.",
    )

    @property
    def train_sizes(self) -> list[int]:
        return self.train_image_size or [self.image_size]

    @property
    def eval_size(self) -> int:
        return self.eval_image_size or self.image_size


@dataclass
class RunOptions:
    output_dir: Folder = option(
        "outputs/train", "Folder for all results. A run that finds its own checkpoints there resumes."
    )
    checkpointing_steps: StepsOrEpoch = option(
        "epoch", "Number of steps between two checkpoints, or epoch for one after each epoch."
    )
    checkpoints_total_limit: Count = option(2, "Number of checkpoints to keep: the newest ones.")
    logging_steps: Count = option(50, "Number of steps between two lines of the log.")
    eval_epochs: Count = option(1, "Number of epochs between two evaluations. The final model is always evaluated.")
    report_to: str | None = option(
        None, "Experiment trackers of Accelerate, separated by commas: tensorboard, wandb, trackio."
    )


@dataclass
class HubOptions:
    push_to_hub: bool = option(
        False, "Push the folder last to the Hub at the end of the run. Run hf auth login first."
    )
    hub_model_id: str | None = option(None, "Hub repository to push to; by default, one named like output_dir.")
    hub_private_repo: bool | None = option(
        None, "Create the repository as a private one. A repository that exists stays as it is."
    )
    hub_revision: str | None = option(
        None, "Branch to push to, created if it does not exist, or refs/pr/N for pull request N; by default main."
    )
    hub_create_pr: bool = option(False, "Open a pull request, for which access to read is enough.")
