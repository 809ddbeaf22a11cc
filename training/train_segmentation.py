"""Trains a RedNet for semantic segmentation (Semantic FPN) with Accelerate.

    accelerate launch training/train_segmentation.py --config configs/training/cityscapes_rednet50_fpn.yaml

Every option of the file can be given on the command line as well (`--help`). With --config_name alone it starts from
scratch. With --model_name_or_path it starts from the weights of a RedNet, a classifier for instance; neck, head and
classes are then those of --config_name. What appears in `output_dir`, and what happens after an interruption, is as
with train.py.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import rednet
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from rednet.training.data.segmentation import check_pairs, load_pairs, segmentation_loaders
from rednet.training.data.transforms import normalize
from rednet.training.engine.hub_folder import check_push, push, save_segmentation_folder
from rednet.training.engine.loop import Task, check_batch_norm, make_accelerator, prepare, train
from rednet.training.engine.run_folder import check_options
from rednet.training.metrics.segmentation import evaluate_segmentation
from rednet.training.options.groups import SegmentationConfig
from rednet.training.options.models import read_config
from rednet.training.options.packaged import find_architecture
from rednet.training.options.parser import check_data_options, parse_options
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor
from transformers.utils.logging import disable_progress_bar


# What of a configuration is not stem and stages.
HEAD = ["neck_type", "neck_hidden_size", "decoder_hidden_size", "classifier_dropout_prob"]
HEAD += ["semantic_loss_ignore_index", "id2label", "label2id"]


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    disable_progress_bar()
    accelerator = make_accelerator(config)
    check_options(config.output_dir, asdict(config))
    if config.push_to_hub and accelerator.is_main_process:
        check_push(config.output_dir, config.hub_model_id)
    set_seed(config.seed)

    places = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
    processor = make_processor(config)
    with clear_errors():
        check_on_main_process(accelerator, load_pairs, config)  # which downloads it once, for all processes
        splits = load_pairs(config)
        model = make_model(config)
        if not config.sync_batch_norm:
            check_batch_norm(model, config.per_device_train_batch_size, config.crop_size)
        check_on_main_process(accelerator, check_pairs, *splits, config, model.config)
        train_loader, eval_loader = segmentation_loaders(*splits, config, processor, model.config, **places)
    names, ignored = model.config.id2label, model.config.semantic_loss_ignore_index
    task = Task(
        loss=partial(compute_loss, config=config, ignored=ignored),
        evaluate=lambda model: evaluate_segmentation(accelerator, model, eval_loader, names),
        save=lambda folder, model, results: save_segmentation_folder(folder, model, processor, config, results),
        metric="eval_mean_iou",
        metric_name="mIoU",
        weigh=partial(count_labeled, ignored=ignored),
    )
    train(prepare(config, accelerator, model, train_loader, task), train_loader)
    if config.push_to_hub and accelerator.is_main_process:
        push(Path(config.output_dir, "last"), config.hub_model_id)
    accelerator.end_training()


def parse_config(arguments: list[str] | None = None) -> SegmentationConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, of the wrong type or of no use; the message names it.
    """
    config, parser = parse_options(SegmentationConfig, arguments, __doc__)
    if config.model_name_or_path is None and config.config_name is None:
        parser.error("give --config_name (the architecture), --model_name_or_path (weights to start from), or both")
    check_data_options(config, parser)
    return config


def make_model(config: SegmentationConfig) -> rednet.RedNetForSemanticSegmentation:
    """From scratch, or with stem and stages, and what else is there, of `model_name_or_path`.

    Raises:
        ValueError: nothing says what the classes are, or it is no RedNet.
    """
    names = [] if config.model_name_or_path is None else [config.model_name_or_path]
    names += [] if config.config_name is None else [find_architecture(config.config_name)]
    configs = [read_config(name) for name in names]
    architecture, given = configs[0], configs[-1]
    if config.config_name is None and given.architectures != ["RedNetForSemanticSegmentation"]:
        raise ValueError(
            f"{config.model_name_or_path} does not segment ({given.architectures}): give --config_name with the classes "
            "and the neck, for instance configs/models/rednet-50-cityscapes.json"
        )
    segments = architecture.architectures == ["RedNetForSemanticSegmentation"]
    known, wanted = (list(one.id2label.values()) for one in (architecture, given))
    if segments and known != wanted and not config.ignore_mismatched_sizes:
        raise ValueError(
            f"{config.model_name_or_path} knows {len(known)} classes, {known[:3]} ..., {config.config_name} has "
            f"{len(wanted)}, {wanted[:3]} ...: --ignore_mismatched_sizes takes its weights for those"
        )
    if architecture.num_channels != 3:
        raise ValueError(
            f"{names[0]} has num_channels {architecture.num_channels}, expected 3: pictures are read as RGB"
        )
    for name in HEAD:
        setattr(architecture, name, getattr(given, name))
    architecture.architectures = ["RedNetForSemanticSegmentation"]
    if config.model_name_or_path is None:
        return AutoModelForSemanticSegmentation.from_config(architecture)
    return AutoModelForSemanticSegmentation.from_pretrained(
        config.model_name_or_path, config=architecture, ignore_mismatched_sizes=config.ignore_mismatched_sizes
    )


def make_processor(config: SegmentationConfig) -> SegformerImageProcessor:
    """Pictures keep their size: the network takes any."""
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
    """Mean cross-entropy of the labeled pixels of `TrainingPairs`: that of the model, and 0 where none is labeled."""
    labels = batch["labels"]
    logits = model(normalize(batch["pixel_values"], config)).logits
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    total = F.cross_entropy(upsampled, labels, ignore_index=ignored, reduction="sum")
    return total / count_labeled(batch, ignored).clamp(min=1)


def count_labeled(batch: dict[str, torch.Tensor], ignored: int) -> torch.Tensor:
    """How many pixels of a batch of `TrainingPairs` have a class."""
    return (batch["labels"] != ignored).sum()


if __name__ == "__main__":
    main()
