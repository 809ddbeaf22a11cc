"""Trains a RedNet for semantic segmentation (Semantic FPN) with Accelerate.

    accelerate launch training/train_segmentation.py --config configs/training/cityscapes_rednet50_fpn.yaml

The command line takes every option of the file as well (`--help`). With --config_name alone, training starts from
scratch. With --model_name_or_path, it starts from the weights of a RedNet, such as a classifier, with the neck, head and
classes of --config_name. The run writes the same files as one of train.py, and resumes in the same way.
"""

from functools import partial

import rednet
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rednet.loading import naming_damaged_weights
from rednet.training.data.segmentation import load_pairs, segmentation_loaders
from rednet.training.data.segmentation_checks import check_pairs
from rednet.training.data.transforms import normalize
from rednet.training.engine.hub_folder import save_segmentation_folder
from rednet.training.engine.loop import Task, run_training
from rednet.training.engine.models import check_batch_norm
from rednet.training.engine.optimizers import freeze
from rednet.training.metrics.segmentation import evaluate_segmentation
from rednet.training.options.models import read_config
from rednet.training.options.packaged import find_architecture
from rednet.training.options.parser import check_data_options, check_optimization_options, parse_options
from rednet.training.options.scripts import SegmentationConfig
from rednet.training.utils.distributed import check_on_main_process
from torch.utils.data import DataLoader
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor


# The options of a configuration that belong to neck, head and classes, not to stem and stages.
HEAD = ["neck_type", "neck_hidden_size", "decoder_hidden_size", "classifier_dropout_prob"]
HEAD += ["semantic_loss_ignore_index", "id2label", "label2id"]


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(config, partial(build, config))


def build(
    config: SegmentationConfig, accelerator: Accelerator
) -> tuple[rednet.RedNetForSemanticSegmentation, Task, DataLoader]:
    """The model, what it is trained for, and the batches that it is trained on."""
    check_on_main_process(accelerator, load_pairs, config)  # downloads the data set once for all processes
    splits = load_pairs(config)
    model = make_model(config)
    if not config.sync_batch_norm:
        check_batch_norm(model, config.per_device_train_batch_size, (config.crop_size[0], config.crop_size[1]))
    check_on_main_process(accelerator, check_pairs, *splits, config, model.config)

    processor = make_processor(config)
    rank = (accelerator.process_index, accelerator.num_processes)
    train_loader, eval_loader = segmentation_loaders(*splits, config, processor, model.config, *rank)
    names, ignored = model.config.id2label, model.config.semantic_loss_ignore_index
    task = Task(
        loss=partial(compute_loss, config=config, ignored=ignored),
        evaluate=lambda model: evaluate_segmentation(accelerator, model, eval_loader, names),
        save=lambda folder, model, results: save_segmentation_folder(folder, model, processor, config, results),
        metric="eval_mean_iou",
        metric_name="mIoU",
        count_items=partial(count_labeled, ignored=ignored),
        frozen=freeze(model, config.frozen_stages),
    )
    return model, task, train_loader


def parse_config(arguments: list[str] | None = None) -> SegmentationConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(SegmentationConfig, arguments, __doc__)
    if config.model_name_or_path is None and config.config_name is None:
        parser.error("give --config_name (the architecture), --model_name_or_path (weights to start from), or both")
    check_data_options(config, parser)
    check_optimization_options(config, parser)
    return config


def make_model(config: SegmentationConfig) -> rednet.RedNetForSemanticSegmentation:
    """A model with the neck, head and classes of `config_name`, and with stem, stages and weights of
    `model_name_or_path`. One of the two is enough.

    Raises:
        ValueError: no configuration has the classes, a model is not a RedNet, or its weights are damaged.
    """
    names = [] if config.model_name_or_path is None else [config.model_name_or_path]
    names += [] if config.config_name is None else [find_architecture(config.config_name)]
    configs = [read_config(name, **config.changes) for name in names]
    architecture, given = configs[0], configs[-1]
    if config.config_name is None and given.architectures != ["RedNetForSemanticSegmentation"]:
        raise ValueError(
            f"{config.model_name_or_path} is not a segmentation model ({given.architectures}): give --config_name with "
            "the classes and the neck, for instance rednet-50-cityscapes"
        )
    segments = architecture.architectures == ["RedNetForSemanticSegmentation"]
    own, wanted = (list(one.id2label.values()) for one in (architecture, given))
    if segments and own != wanted and not config.ignore_mismatched_sizes:
        raise ValueError(
            f"{config.model_name_or_path} has {len(own)} classes, {own[:3]} ..., but {config.config_name} has "
            f"{len(wanted)}, {wanted[:3]} ...: use --ignore_mismatched_sizes to train its weights on these"
        )
    for name in HEAD:
        setattr(architecture, name, getattr(given, name))
    architecture.architectures = ["RedNetForSemanticSegmentation"]
    if config.model_name_or_path is None:
        return AutoModelForSemanticSegmentation.from_config(architecture)
    with naming_damaged_weights(config.model_name_or_path):
        return AutoModelForSemanticSegmentation.from_pretrained(
            config.model_name_or_path, config=architecture, ignore_mismatched_sizes=config.ignore_mismatched_sizes
        )


def make_processor(config: SegmentationConfig) -> SegformerImageProcessor:
    """Images keep their size, because the network takes any."""
    return SegformerImageProcessor(
        do_resize=False,
        do_convert_rgb=True,
        do_reduce_labels=config.do_reduce_labels,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )


def compute_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], config: SegmentationConfig, ignored: int
) -> torch.Tensor:
    """Mean cross-entropy over the labeled pixels of a batch of `TrainingPairs`, 0 if no pixel is labeled."""
    labels = batch["labels"]
    logits = model(normalize(batch["pixel_values"], config)).logits
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    total = F.cross_entropy(upsampled, labels, ignore_index=ignored, reduction="sum")
    return total / count_labeled(batch, ignored).clamp(min=1)


def count_labeled(batch: dict[str, torch.Tensor], ignored: int) -> torch.Tensor:
    """The number of pixels with a class in a batch of `TrainingPairs`."""
    return (batch["labels"] != ignored).sum()


if __name__ == "__main__":
    main()
