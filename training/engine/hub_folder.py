"""What a training run leaves: a complete Hub folder, with a card that says what was trained and what it reaches."""

from dataclasses import asdict
from pathlib import Path

import rednet
import yaml
from huggingface_hub import EvalResult, ModelCard
from rednet import hub
from rednet.hub.cards import make_card
from rednet.training.options.describe import describe_augmentation, describe_dense_augmentation
from rednet.training.options.groups import DataOptions, LoopOptions, SegmentationConfig, TrainingConfig
from transformers import BaseImageProcessor


def save_classifier_folder(
    folder: Path,
    model: rednet.RedNetForImageClassification,
    processor: BaseImageProcessor,
    config: TrainingConfig,
    results: dict,
) -> None:
    """Replaces the files of a model in `folder`. `results` has `eval_accuracy`, `eval_top_5_accuracy` and `eval_samples`."""
    training = f"{optimization(config)}, label smoothing {config.label_smoothing:g}. Training images: {describe_augmentation(config)}."
    metrics = accuracies(results, model.config.num_labels)
    card = trained_card(model, config, results, training, asdict(config), metrics, config.image_size)
    hub.save_hub_folder(folder, model, processor, card)


def save_segmentation_folder(
    folder: Path,
    model: rednet.RedNetForSemanticSegmentation,
    processor: BaseImageProcessor,
    config: SegmentationConfig,
    results: dict,
) -> None:
    """Replaces the files of a model in `folder`. `results` has `eval_mean_iou`, `eval_overall_accuracy` and `eval_samples`."""
    height, width = config.crop_size
    training = (
        f"{optimization(config)}, batches of {config.per_device_train_batch_size} a process. Training images: "
        f"{describe_dense_augmentation(config)}."
    )
    metrics = {
        "mIoU": ("mean_iou", results["eval_mean_iou"]),
        "Pixel accuracy": ("accuracy", results["eval_overall_accuracy"]),
    }
    task = "image-segmentation"
    card = trained_card(model, config, results, training, asdict(config), metrics, (height, width), task)
    hub.save_hub_folder(folder, model, processor, card)


def optimization(config: LoopOptions) -> str:
    momentum = " with Nesterov momentum" if config.nesterov else " with momentum"
    length = f"{config.max_train_steps} steps" if config.max_train_steps else f"{config.num_train_epochs} epochs"
    average = "" if config.ema_decay is None else f", averaged weights (decay {config.ema_decay:g})"
    return f"SGD{momentum if config.momentum else ''}, {length}, {config.lr_scheduler_type} schedule{average}"


def accuracies(results: dict, num_labels: int) -> dict[str, tuple[str, float]]:
    """There is no top-5 accuracy of five classes."""
    metrics = {"Top-1": ("accuracy", results["eval_accuracy"])}
    if num_labels > 5:
        metrics["Top-5"] = ("accuracy", results["eval_top_5_accuracy"])
    return metrics


def trained_card(
    model: rednet.RedNetPreTrainedModel,
    config: TrainingConfig | SegmentationConfig,
    results: dict,
    training: str,
    options: dict,
    metrics: dict[str, tuple[str, float]],
    image_size: int | tuple[int, int],
    task: str = "image-classification",
) -> ModelCard:
    """
    Args:
        training: how it was trained, in words.
        options: the same, in full.
        metrics: the type and the value of each, from 0 to 1.
        image_size: that it was trained at, or height and width.
        task: as the Hub calls it.
    """
    title = title_of(config)
    origin = f"from {config.model_name_or_path}" if config.model_name_or_path else "from scratch"
    local_model = config.model_name_or_path is not None and Path(config.model_name_or_path).exists()
    held_out = f"of its split `{config.validation_split}`"
    if config.train_val_split is not None:
        held_out = f"of it that were held out, a part of {config.train_val_split}"
    elif config.validation_dir is not None:
        held_out = f"of {Path(config.validation_dir).name}"
    part = "" if config.max_train_samples is None else f"at most {config.max_train_samples:,} images of "
    the = "the " if config.max_eval_samples is None else ""
    introduction = (
        f"A RedNet for {task.replace('-', ' ')}, trained {origin} on {part}{title}, and measured on {the}"
        f"{results['eval_samples']:,} images {held_out}."
    )
    return make_card(
        model.config,
        f"RedNet, trained on {title}",
        f"rednet-{title.replace(' ', '-')}",
        introduction,
        training,
        image_size=image_size,
        results=measured(config, metrics, task),
        datasets=None if Path(config.source).exists() else [config.source],
        base_model=None if local_model else config.model_name_or_path,
        options=yaml.safe_dump(options, sort_keys=False).strip(),
    )


def title_of(config: DataOptions) -> str:
    parts = config.source.rstrip("/").split("/")
    name = parts[-2] if len(parts) > 1 and parts[-1] == config.train_split else parts[-1]  # pictures/train
    return name.replace("_", " ")


def measured(
    config: DataOptions, metrics: dict[str, tuple[str, float]], task: str = "image-classification"
) -> list[EvalResult]:
    """Metrics in the form of a card, which need not tell the world about folders of this machine."""
    local = Path(config.source).exists()
    return [
        EvalResult(
            task_type=task,
            dataset_type=title_of(config) if local else config.source,
            dataset_name=title_of(config),
            dataset_split=config.validation_split,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for name, (kind, value) in metrics.items()
    ]


def check_push(output_dir: str, repository: str | None) -> None:
    """Before hours of training, not after them: whether the Hub lets this account write to the repository."""
    try:
        hub.check_token(repository or Path(output_dir).resolve().name)
    except (OSError, ValueError) as error:  # no token, no permission, no Hub, no name of a repository
        raise SystemExit(f"error: --push_to_hub: {error}") from error


def push(folder: Path, repository: str | None, private: bool | None = None) -> None:
    """Pushes the folder of a run to `repository`, or to one with the name of the run's `output_dir`."""
    repository = repository or folder.resolve().parent.name
    try:
        print(hub.push_hub_folder(folder, repository, private).repo_url)
    except Exception as error:  # what a broken connection raises differs between releases of huggingface_hub
        raise SystemExit(
            f"{folder} is whole, but was not pushed: {error}\n"
            f"To push it: python -m rednet.hub push {folder} {repository}"
        ) from error
