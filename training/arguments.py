"""What a training run can be told, in a YAML file and on the command line. The command line wins."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_type_hints

import yaml
from transformers import HfArgumentParser


def _option(default, help: str, **kwargs):
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class TrainingConfig:
    """Names are those of Transformers' run_image_classification_no_trainer.py wherever it has them."""

    # Model
    model_name_or_path: str | None = _option(None, "Weights to start from: a folder or the id of a Hub repository.")
    config_name: str | None = _option(None, "Architecture to start from scratch: a config.json, or a folder or id.")

    # Data
    dataset_name: str = _option("", "Data set: a Hub id or a local folder that `datasets` can load.")
    train_split: str = _option("train", "Split to train on.")
    validation_split: str = _option("validation", "Split to evaluate on after every epoch.")
    image_column_name: str = _option("image", "Column with the images.")
    label_column_name: str = _option("label", "Column with the labels.")
    max_train_samples: int | None = _option(None, "Train on the first so many images only.")
    max_eval_samples: int | None = _option(None, "Evaluate on the first so many images only.")
    dataloader_num_workers: int = _option(4, "Processes that load and augment images.")

    # Pictures
    image_size: int = _option(224, "Height and width that the model sees, in pixels.")
    crop_pct: float = _option(
        0.875, "In evaluation the image is resized to image_size / crop_pct, then cropped (below 384)."
    )
    image_mean: list[float] = _option([0.485, 0.456, 0.406], "Mean of each channel, of values in 0 ... 1.")
    image_std: list[float] = _option([0.229, 0.224, 0.225], "Standard deviation of each channel.")
    random_crop_min_scale: float | None = _option(
        0.08, "The least part of its area that a random crop of a training image keeps; null in a file for no crop."
    )

    # Optimisation: SGD with Nesterov momentum, cosine schedule after a linear warm-up
    per_device_train_batch_size: int = _option(32, "Images in a training batch of one process.")
    per_device_eval_batch_size: int = _option(64, "Images in an evaluation batch of one process.")
    gradient_accumulation_steps: int = _option(1, "Batches whose gradients are averaged for one step.")
    num_train_epochs: int = _option(130, "Passes over the training images.")
    max_train_steps: int | None = _option(None, "Stop after so many steps; the schedule ends there as well.")
    learning_rate: float = _option(0.8, "Learning rate after the warm-up, for the whole batch of all processes.")
    momentum: float = _option(0.9, "Nesterov momentum.")
    weight_decay: float = _option(1e-4, "Weight decay of all parameters.")
    num_warmup_steps: int = _option(3130, "Steps of linear warm-up.")
    warmup_start_factor: float = _option(0.25, "Part of the learning rate that the warm-up starts from.")
    label_smoothing: float = _option(0.1, "Part of the target that is spread over all classes.")
    max_grad_norm: float | None = _option(None, "Gradients are scaled down to this norm.")
    mixed_precision: str = _option("no", "no, bf16 or fp16.", choices=["no", "bf16", "fp16"])
    seed: int = _option(42, "Seed of everything random.")

    # Run
    output_dir: str = _option("outputs/train", "Everything goes here; a run that finds its own checkpoints resumes.")
    checkpointing_steps: str = _option("epoch", "How often the state is saved: a number of steps, or epoch.")
    checkpoints_total_limit: int = _option(2, "How many of the newest checkpoints stay.")
    logging_steps: int = _option(50, "Steps between two lines of the log.")
    push_to_hub: bool = _option(False, "Push the Hub folder `last` when the run ends; needs `hf auth login`.")
    hub_model_id: str | None = _option(None, "Repository to push to; by default one with the name of output_dir.")
    report_to: str | None = _option(None, "Trackers of Accelerate, separated by commas: tensorboard, wandb, trackio.")


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """Reads `--config FILE.yaml` and the command line.

    Raises:
        SystemExit: an argument is unknown, missing or of the wrong type; the message names it.
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", type=Path)
    file, rest = first.parse_known_args(arguments)
    parser = HfArgumentParser(TrainingConfig, description=__doc__)
    parser.add_argument("--config", help="YAML file with any of these options.")
    if file.config is not None:
        parser.set_defaults(**_read(file.config, parser))
    config, _ = parser.parse_args_into_dataclasses(rest)
    if (config.model_name_or_path is None) == (config.config_name is None):
        parser.error("give one of --model_name_or_path (weights to start from) and --config_name (from scratch)")
    if not config.dataset_name:
        parser.error("give --dataset_name, a Hub id or a local folder")
    steps = config.checkpointing_steps
    if steps != "epoch" and not (steps.isdecimal() and int(steps) > 0):
        parser.error(f"--checkpointing_steps is {steps!r}, expected a positive number or 'epoch'")
    if config.checkpoints_total_limit < 1:
        parser.error(f"--checkpoints_total_limit is {config.checkpoints_total_limit}, expected at least 1")
    return config


def _read(path: Path, parser: argparse.ArgumentParser) -> dict:
    if not path.is_file():
        parser.error(f"--config {path}: there is no such file")
    values = yaml.safe_load(path.read_text()) or {}
    kinds = get_type_hints(TrainingConfig)
    if unknown := set(values) - set(kinds):
        parser.error(f"{path}: unknown options {sorted(unknown)}")
    for name, value in values.items():
        kind = kinds[name]
        try:
            if kind in (float, float | None) and isinstance(value, (int, str)):
                values[name] = value = float(value)  # YAML reads 1e-4 as a string
            elif kind is str and isinstance(value, int):
                values[name] = value = "no" if value is False else str(value)  # and a bare `no` as False
            if not isinstance(value, list if kind == list[float] else kind):
                raise ValueError
        except ValueError:
            parser.error(f"{path}: {name} is {value!r}, expected {kind}")
    return values
