"""What a training run leaves: a complete Hub folder, with a card that says what was trained and what it reaches."""

from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard
from transformers import BaseImageProcessor

import rednet
from arguments import SegmentationConfig, TrainingConfig
from rednet import hub
from rednet.hub_cards import make_card


def save_hub_folder(
    folder: Path,
    model: rednet.RedNetForImageClassification,
    processor: BaseImageProcessor,
    config: TrainingConfig,
    results: dict,
) -> None:
    """Replaces `folder` as a whole. `results` has `eval_accuracy`, `eval_top_5_accuracy` and `eval_samples`."""
    augmentation = "flips" if config.random_crop_min_scale is None else "crops and flips"
    training = (
        f"SGD with Nesterov momentum, {config.num_train_epochs} epochs, cosine schedule, label smoothing "
        f"{config.label_smoothing}, random {augmentation}."
    )
    metrics = {"Top-1": ("accuracy", results["eval_accuracy"])}
    if model.config.num_labels > 5:
        metrics["Top-5"] = ("accuracy", results["eval_top_5_accuracy"])
    card = trained_card(model, config, results, "image-classification", training, metrics, config.image_size)
    hub.save_hub_folder(folder, model, processor, card)


def save_segmentation_folder(
    folder: Path,
    model: rednet.RedNetForSemanticSegmentation,
    processor: BaseImageProcessor,
    config: SegmentationConfig,
    results: dict,
) -> None:
    """Replaces `folder` as a whole. `results` has `eval_mean_iou`, `eval_overall_accuracy` and `eval_samples`."""
    height, width = config.crop_size
    training = (
        f"SGD, batches of {config.per_device_train_batch_size} a process, {config.lr_scheduler_type} schedule, random "
        f"scales from {config.random_scale[0]} to {config.random_scale[1]}, crops of {height} x {width} and flips."
    )
    metrics = {
        "mIoU": ("mean_iou", results["eval_mean_iou"]),
        "Pixel accuracy": ("accuracy", results["eval_overall_accuracy"]),
    }
    card = trained_card(model, config, results, "image-segmentation", training, metrics, (height, width))
    hub.save_hub_folder(folder, model, processor, card)


def trained_card(
    model: rednet.RedNetPreTrainedModel,
    config: TrainingConfig | SegmentationConfig,
    results: dict,
    task: str,
    training: str,
    metrics: dict[str, tuple[str, float]],
    image_size: int | tuple[int, int],
) -> ModelCard:
    """
    Args:
        task: as the Hub calls it.
        training: how it was trained, in words.
        metrics: the type and the value of each, from 0 to 1.
    """
    dataset = (config.dataset_name or config.train_dir).rstrip("/")
    title = dataset.split("/")[-1].replace("_", " ")
    name = f"RedNet, trained on {title}"
    origin = f"from {config.model_name_or_path}" if config.model_name_or_path else "from scratch"
    held_out = f"of its split `{config.validation_split}`"
    if config.train_val_split is not None:
        held_out = f"of it that were held out, a part of {config.train_val_split}"
    elif config.validation_dir is not None:
        held_out = f"of {Path(config.validation_dir).name}"
    introduction = (
        f"A RedNet for {task.replace('-', ' ')}, trained {origin} on {title}, and measured on the "
        f"{results['eval_samples']:,} images {held_out}."
    )
    measured = {
        "task_type": task,
        "dataset_type": dataset,
        "dataset_name": title,
        "dataset_split": config.validation_split,
    }
    local = Path(dataset).exists()
    return make_card(
        model.config,
        name,
        f"rednet-{title.replace(' ', '-')}",
        introduction,
        training,
        image_size=image_size,
        results=[
            EvalResult(metric_name=name, metric_type=kind, metric_value=value, **measured)
            for name, (kind, value) in metrics.items()
        ],
        datasets=None if local else [dataset],
        base_model=config.model_name_or_path,
        options=yaml.safe_dump(asdict(config), sort_keys=False).strip(),
    )


def check_push() -> None:
    """Before hours of training, not after them: whether there is a token that the Hub accepts."""
    try:
        hub.check_token()
    except PermissionError as error:
        raise SystemExit(f"--push_to_hub: {error}") from error


def push(folder: Path, repository: str) -> None:
    try:
        print(hub.push_hub_folder(folder, repository).repo_url)
    except Exception as error:  # what a broken connection raises differs between releases of huggingface_hub
        raise SystemExit(
            f"{folder} is whole, but was not pushed: {error}\n"
            f"To push it: python training/push_to_hub.py {folder} {repository}"
        ) from error
