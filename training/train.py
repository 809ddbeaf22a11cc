"""Trains a RedNet for image classification with Accelerate.

    accelerate launch training/train.py --config configs/training/fashion_mnist.yaml

The command line takes every option of the file as well (`--help`). The run writes `log.jsonl`, `results.json`, the
newest `checkpoints` and the complete Hub folders `best` and `last` to `output_dir`. The same command resumes an
interrupted run from its newest checkpoint, and evaluates a finished one.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import rednet
import torch
from accelerate import Accelerator
from rednet.loading import naming_damaged_weights
from rednet.training.data.batches import TrainingOrder, evaluation_loader, training_loader
from rednet.training.data.gpu_decoding import decode_files
from rednet.training.data.mixing import BatchAugmentation
from rednet.training.data.sources import check_images, class_names, load_images
from rednet.training.data.transforms import RESAMPLE, normalize
from rednet.training.engine.hub_folder import save_classifier_folder
from rednet.training.engine.loop import Task, run_training
from rednet.training.engine.losses import Teacher, classification_loss, distillation_loss, load_teacher
from rednet.training.engine.models import check_batch_norm
from rednet.training.engine.optimizers import freeze
from rednet.training.metrics.classification import evaluate_classification
from rednet.training.options.models import read_config
from rednet.training.options.packaged import find_architecture
from rednet.training.options.parser import (
    MODELS,
    REPLACED,
    check_data_options,
    check_optimization_options,
    check_sizes,
    parse_options,
)
from rednet.training.options.scripts import TrainingConfig
from rednet.training.utils.distributed import check_on_main_process
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification, ConvNextImageProcessor


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(config, partial(build, config))


def build(
    config: TrainingConfig, accelerator: Accelerator
) -> tuple[rednet.RedNetForImageClassification, Task, DataLoader]:
    """The model, what it is trained for, and the batches that it is trained on."""
    with accelerator.main_process_first():
        train_images, eval_images = load_images(config)
    model = make_model(config, class_names(train_images))
    num_labels = model.config.num_labels
    teacher = load_teacher(config, model.config, config, accelerator)
    size = min(config.train_sizes)
    if not config.sync_batch_norm:
        check_batch_norm(model, config.per_device_train_batch_size, (size, size))
    splits = {config.train_split: train_images, config.validation_split: eval_images}
    check_on_main_process(accelerator, check_images, splits, num_labels, config)

    processor = make_processor(config)
    rank = (accelerator.process_index, accelerator.num_processes)
    train_loader = training_loader(train_images, config, num_labels, *rank)
    eval_loader = evaluation_loader(eval_images, config, processor, num_labels, *rank)
    order = cast(TrainingOrder, train_loader.batch_sampler)
    batch_augmentation = BatchAugmentation(config, num_labels, accelerator.device)

    def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return batch_augmentation(images, labels, order.epoch)

    task = Task(
        loss=partial(compute_loss, config=config, augment=augment, teacher=teacher),
        evaluate=lambda model: evaluate_classification(accelerator, model, eval_loader),
        save=lambda folder, model, results: save_classifier_folder(folder, model, processor, config, results),
        metric="eval_accuracy",
        metric_name="top-1",
        frozen=freeze(model, config.frozen_stages),
    )
    return model, task, train_loader


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(TrainingConfig, arguments, __doc__, REPLACED | MODELS)
    if (config.model_name_or_path is None) == (config.config_name is None):
        parser.error("give one of --model_name_or_path (weights to start from) and --config_name (from scratch)")
    check_data_options(config, parser)
    check_optimization_options(config, parser)
    check_sizes(config.train_image_size, config.num_train_epochs, config.max_train_steps is not None, parser)
    if config.streaming and config.repeated_augmentation > 1:
        parser.error("--repeated_augmentation draws images by number: it is not supported with --streaming")
    if config.decode_on_gpu:
        check_gpu_decoding(config, parser)
    return config


def check_gpu_decoding(config: TrainingConfig, parser: ArgumentParser) -> None:
    for name in ("color_jitter", "auto_augment"):
        if value := getattr(config, name):
            parser.error(f"--{name} is {value}: it changes decoded images, which --decode_on_gpu does not support")
    if torch.version.cuda is None or not torch.cuda.is_available():
        parser.error("--decode_on_gpu needs an NVIDIA GPU, and torch finds none")


def make_processor(config: TrainingConfig) -> ConvNextImageProcessor:
    return ConvNextImageProcessor(
        size={"shortest_edge": config.eval_size},
        crop_pct=config.crop_pct,
        resample=RESAMPLE["bilinear" if config.interpolation == "bilinear" else "bicubic"],
        image_mean=config.image_mean,
        image_std=config.image_std,
        do_convert_rgb=True,
    )


def make_model(config: TrainingConfig, labels: list[str] | None) -> rednet.RedNetForImageClassification:
    """
    Args:
        labels: names of the classes, None if the data set has numbers only. Then the model keeps its own classes.

    Raises:
        ValueError: the weights belong to a model for other classes, and `ignore_mismatched_sizes` is false; or they are
            damaged.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    if config.model_name_or_path is not None:
        own = list(read_config(config.model_name_or_path).id2label.values())
        if labels and own != labels and not config.ignore_mismatched_sizes:
            raise ValueError(
                f"{config.model_name_or_path} has {len(own)} classes, {own[:3]} ..., but the data set has "
                f"{len(labels)}, {labels[:3]} ...: use --ignore_mismatched_sizes to train its weights on these"
            )
        with naming_damaged_weights(config.model_name_or_path):
            return AutoModelForImageClassification.from_pretrained(
                config.model_name_or_path,
                ignore_mismatched_sizes=config.ignore_mismatched_sizes,
                **names,
                **config.changes,
            )
    assert config.config_name is not None  # parse_config requires one of the two
    architecture = read_config(find_architecture(config.config_name), **names, **config.changes)
    return AutoModelForImageClassification.from_config(architecture)


def compute_loss(
    model: torch.nn.Module,
    batch: dict[str, Any],
    config: TrainingConfig,
    augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    teacher: Teacher | None = None,
) -> Tensor:
    """Mean loss of a batch of `TrainingBatches`, whose normalized images and labels `augment` changes."""
    images, labels = batch["pixel_values"], batch["labels"]
    if config.decode_on_gpu:
        images = decode_files(images, labels.device)
    images = normalize(images, config)
    if augment is not None:
        images, labels = augment(images, labels)
        images = images.contiguous(memory_format=torch.channels_last)
    logits = model(images).logits
    loss = classification_loss(logits, labels, config)
    if teacher is None:
        return loss
    distance = distillation_loss(logits, teacher(images), config)
    return (1 - config.distillation_alpha) * loss + config.distillation_alpha * distance


if __name__ == "__main__":
    main()
