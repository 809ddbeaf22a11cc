"""Trains a RedNet for image classification with Accelerate.

    accelerate launch training/train.py --config configs/training/fashion_mnist.yaml

Every option of the file can be given on the command line as well (`--help`). In `output_dir` appear `log.jsonl`,
`results.json`, the newest `checkpoints`, and the complete Hub folders `best` and `last`. A run that was interrupted
goes on from its newest checkpoint when it is started again with the same options; a finished one is evaluated only.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import rednet
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from rednet.training.data.batches import evaluation_loader, training_loader
from rednet.training.data.sources import check_images, class_names, load_images
from rednet.training.data.transforms import make_mixing, normalize
from rednet.training.engine.hub_folder import check_push, push, save_classifier_folder
from rednet.training.engine.loop import Task, check_batch_norm, make_accelerator, prepare, train
from rednet.training.engine.run_folder import check_options
from rednet.training.metrics.classification import evaluate_model
from rednet.training.options.groups import TrainingConfig
from rednet.training.options.models import read_config
from rednet.training.options.packaged import find_architecture
from rednet.training.options.parser import MODELS, REPLACED, check_data_options, parse_options
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, ConvNextImageProcessor
from transformers.utils.logging import disable_progress_bar


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    disable_progress_bar()  # those of loading and saving weights; the training has its own
    accelerator = make_accelerator(config)
    check_options(config.output_dir, asdict(config))
    if config.push_to_hub and accelerator.is_main_process:
        check_push(config.output_dir, config.hub_model_id)
    set_seed(config.seed)

    places = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
    processor = make_processor(config)
    with clear_errors():
        with accelerator.main_process_first():
            train_images, eval_images = load_images(config)
        model = make_model(config, class_names(train_images))
        if not config.sync_batch_norm:
            check_batch_norm(model, config.per_device_train_batch_size, (config.image_size, config.image_size))
        splits = {config.train_split: train_images, config.validation_split: eval_images}
        check_on_main_process(accelerator, check_images, splits, model.config.num_labels, config)
        train_loader = training_loader(train_images, config, model.config.num_labels, **places)
        eval_loader = evaluation_loader(eval_images, config, processor, model.config.num_labels, **places)
    task = Task(
        loss=partial(compute_loss, config=config, mixing=make_mixing(config, model.config.num_labels)),
        evaluate=lambda model: evaluate_model(accelerator, model, eval_loader),
        save=lambda folder, model, results: save_classifier_folder(folder, model, processor, config, results),
        metric="eval_accuracy",
        metric_name="top-1",
    )
    train(prepare(config, accelerator, model, train_loader, task), train_loader)
    if config.push_to_hub and accelerator.is_main_process:
        push(Path(config.output_dir, "last"), config.hub_model_id)
    accelerator.end_training()


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, of the wrong type or of no use; the message names it.
    """
    config, parser = parse_options(TrainingConfig, arguments, __doc__, REPLACED | MODELS)
    if (config.model_name_or_path is None) == (config.config_name is None):
        parser.error("give one of --model_name_or_path (weights to start from) and --config_name (from scratch)")
    check_data_options(config, parser)
    return config


def make_processor(config: TrainingConfig) -> ConvNextImageProcessor:
    return ConvNextImageProcessor(
        size={"shortest_edge": config.image_size},
        crop_pct=config.crop_pct,
        resample=2,  # bilinear
        image_mean=config.image_mean,
        image_std=config.image_std,
        do_convert_rgb=True,
    )


def make_model(config: TrainingConfig, labels: list[str] | None) -> rednet.RedNetForImageClassification:
    """The model for these classes; where the data set has bare numbers, for those that the model has already.

    Raises:
        ValueError: the weights are of a model for other classes, and `ignore_mismatched_sizes` does not allow it.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    if config.model_name_or_path is not None:
        known = list(read_config(config.model_name_or_path).id2label.values())
        if labels and known != labels and not config.ignore_mismatched_sizes:
            raise ValueError(
                f"{config.model_name_or_path} knows {len(known)} classes, {known[:3]} ..., the data set has "
                f"{len(labels)}, {labels[:3]} ...: --ignore_mismatched_sizes takes its weights for those"
            )
        return AutoModelForImageClassification.from_pretrained(
            config.model_name_or_path, ignore_mismatched_sizes=config.ignore_mismatched_sizes, **names
        )
    return AutoModelForImageClassification.from_config(read_config(find_architecture(config.config_name), **names))


def compute_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], config: TrainingConfig, mixing: v2.Transform | None = None
) -> torch.Tensor:
    """Mean cross-entropy of a batch of `TrainingBatches`."""
    images, labels = normalize(batch["pixel_values"], config), batch["labels"]
    if mixing is not None:
        images, labels = mixing(images, labels)
        images = images.contiguous(memory_format=torch.channels_last)
    return F.cross_entropy(model(images).logits, labels, label_smoothing=config.label_smoothing)


if __name__ == "__main__":
    main()
