"""What a training run leaves: a complete Hub folder, whose card says how the model was trained and what it reaches."""

import os
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import rednet
import yaml
from huggingface_hub import EvalResult, ModelCard
from rednet.hub import check_token, make_card, push_hub_folder, pushed_url, save_hub_folder
from rednet.training.options.describe import describe_augmentation, describe_dense_augmentation
from rednet.training.options.finetune import FinetuneConfig
from rednet.training.options.groups import DataOptions, HubOptions
from rednet.training.options.optimization import LoopOptions
from rednet.training.options.scripts import SegmentationConfig, TrainingConfig
from transformers import BaseImageProcessor


def save_classifier_folder(
    folder: Path,
    model: rednet.RedNetForImageClassification,
    processor: BaseImageProcessor,
    config: TrainingConfig,
    results: dict,
) -> None:
    """Writes the Hub folder of a classifier; a model that is already in `folder` is replaced.

    Args:
        results: has `eval_accuracy`, `eval_top_5_accuracy` (both from 0 to 1), and what `trained_card` needs.
    """
    repeated = f", each image {config.repeated_augmentation} times" if config.repeated_augmentation > 1 else ""
    training = (
        f"{describe_optimization(config)}, {describe_loss(config)}. Training images: {describe_augmentation(config)}"
        f"{repeated}."
    )
    metrics = accuracies(results, model.config.num_labels)
    trained_at = describe_sizes(config.train_sizes)
    card = trained_card(
        model, processor, config, results, training, trained_at, asdict(config), metrics, config.eval_size
    )
    save_hub_folder(folder, model, processor, card)


def save_segmentation_folder(
    folder: Path,
    model: rednet.RedNetForSemanticSegmentation,
    processor: BaseImageProcessor,
    config: SegmentationConfig,
    results: dict,
) -> None:
    """Writes the Hub folder of a segmentation model; a model that is already in `folder` is replaced.

    Args:
        results: has `eval_mean_iou`, `eval_overall_accuracy` (both from 0 to 1), and what `trained_card` needs.
    """
    height, width = config.crop_size
    crops = config.per_device_train_batch_size * config.gradient_accumulation_steps
    training = (
        f"{describe_optimization(config)}, {crops} crops per process and step. Training images: "
        f"{describe_dense_augmentation(config)}."
    )
    metrics = {
        "mIoU": ("mean_iou", results["eval_mean_iou"]),
        "Pixel accuracy": ("accuracy", results["eval_overall_accuracy"]),
    }
    task = "image-segmentation"
    card = trained_card(
        model,
        processor,
        config,
        results,
        training,
        f"{height} x {width}",
        asdict(config),
        metrics,
        (height, width),
        task,
    )
    save_hub_folder(folder, model, processor, card)


def describe_sizes(sizes: list[int]) -> str:
    """Returns for example `128 x 128, then 224 x 224`."""
    return ", then ".join(f"{size} x {size}" for size in sizes)


def describe_optimization(config: LoopOptions) -> str:
    optimizer = {"sgd": "SGD", "adamw": "AdamW", "lamb": "LAMB", "muon": "Muon"}[config.optimizer]
    if config.momentum and config.optimizer in ("sgd", "muon"):
        optimizer += " with Nesterov momentum" if config.nesterov else " with momentum"
    length = f"{config.max_train_steps} steps" if config.max_train_steps else f"{config.num_train_epochs} epochs"
    average = "" if config.ema_decay is None else f", averaged weights (decay {config.ema_decay:g})"
    return f"{optimizer}, {length}, {config.lr_scheduler_type} schedule{average}"


def describe_loss(config: TrainingConfig) -> str:
    words = ["binary cross-entropy"] if config.loss == "bce" else []
    words.append(f"label smoothing {config.label_smoothing:g}")
    if (teacher := config.teacher_model_name_or_path) is not None:
        name = Path(teacher).name if Path(teacher).exists() else teacher
        words.append(f"{config.distillation_type} distillation from {name}")
    return ", ".join(words)


def accuracies(results: dict, num_labels: int) -> dict[str, tuple[str, float]]:
    """Returns type and value of each accuracy by its name. With five classes or fewer, top-5 means nothing."""
    metrics = {"Top-1": ("accuracy", results["eval_accuracy"])}
    if num_labels > 5:
        metrics["Top-5"] = ("accuracy", results["eval_top_5_accuracy"])
    return metrics


def trained_card(
    model: rednet.RedNetPreTrainedModel,
    processor: BaseImageProcessor,
    config: TrainingConfig | SegmentationConfig | FinetuneConfig,
    results: dict,
    training: str,
    trained_at: str,
    options: dict,
    metrics: dict[str, tuple[str, float]],
    image_size: int | tuple[int, int],
    task: str = "image-classification",
) -> ModelCard:
    """Renders the card of a trained model.

    Args:
        processor: of the images on which the metrics were measured.
        results: has `eval_samples`, the number of these images, and `seconds_by_hardware`, the duration of the training.
        training: a sentence about the training.
        trained_at: the size of the training images, in words.
        options: all options of the script.
        metrics: type and value (from 0 to 1) of each metric by its name.
        image_size: that operations are counted for: pixels of the side, or (height, width).
        task: the name that the Hub has for it.
    """
    title = title_of(config)
    details = {
        "Trained at": trained_at,
        "Evaluated at": evaluation_size(processor),
        "Training time": describe_time(results["seconds_by_hardware"]),
    }
    starts_from_folder = config.model_name_or_path is not None and Path(config.model_name_or_path).exists()
    return make_card(
        model.config,
        f"RedNet, trained on {title}",
        f"rednet-{title.replace(' ', '-')}",
        introduce(config, results["eval_samples"], task),
        training,
        image_size=image_size,
        details=details,
        results=measured(config, metrics, task),
        datasets=None if Path(config.source).exists() else [config.source],
        base_model=None if starts_from_folder else config.model_name_or_path,
        options=yaml.safe_dump(options, sort_keys=False).strip(),
    )


def evaluation_size(processor: BaseImageProcessor) -> str:
    """Returns the size of the images that an image processor returns, in words."""
    if not processor.do_resize:
        return "the size of each image"
    side = processor.size["shortest_edge"]
    resized = int(side / processor.crop_pct) if side < 384 else side  # as ConvNextImageProcessor does
    crop = f", the center crop of images resized to {resized}" if resized != side else ""
    return f"{side} x {side}{crop}"


def describe_time(seconds_by_hardware: dict[str, float]) -> str:
    """Returns for example `3.5 hours on 8 x NVIDIA H100`."""
    parts = []
    for hardware, seconds in seconds_by_hardware.items():
        length = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{max(seconds / 60, 0.1):.1f} minutes"
        parts.append(f"{length} on {hardware}")
    return ", ".join(parts)


def introduce(config: TrainingConfig | SegmentationConfig | FinetuneConfig, eval_samples: int, task: str) -> str:
    """Returns a sentence about the model, with its training images and the images on which it was measured."""
    origin = f"from {config.model_name_or_path}" if config.model_name_or_path else "from scratch"
    part = "" if config.max_train_samples is None else f"at most {config.max_train_samples:,} images of "
    held_out = f"of its split `{config.validation_split}`"
    if config.train_val_split is not None:
        held_out = f"that were held out of it, a part of {config.train_val_split}"
    elif config.validation_dir is not None:
        held_out = f"of {Path(config.validation_dir).name}"
    the = "the " if config.max_eval_samples is None else ""
    return (
        f"A RedNet for {task.replace('-', ' ')}, trained {origin} on {part}{title_of(config)}, and measured on {the}"
        f"{eval_samples:,} images {held_out}."
    )


def title_of(config: DataOptions) -> str:
    """Returns the name of the data set without its owner; of a folder `pictures/train`, it is `pictures`."""
    parts = config.source.rstrip("/").split("/")
    name = parts[-2] if len(parts) > 1 and parts[-1] == config.train_split else parts[-1]
    return name.replace("_", " ")


def measured(
    config: DataOptions, metrics: dict[str, tuple[str, float]], task: str = "image-classification"
) -> list[EvalResult]:
    """Returns metrics as results of a card. Of a data set in a local folder, the card has the name but not the path."""
    is_local = Path(config.source).exists()
    return [
        EvalResult(
            task_type=task,
            dataset_type=title_of(config) if is_local else config.source,
            dataset_name=title_of(config),
            dataset_split=config.validation_split,
            metric_type=metric_type,
            metric_name=name,
            metric_value=value,
        )
        for name, (metric_type, value) in metrics.items()
    ]


def check_push(output_dir: str, options: HubOptions | FinetuneConfig) -> None:
    """Checks before the training that a push at its end is allowed.

    Raises:
        SystemExit: there is no valid token, it may not push to the repository, or the Hub cannot be reached.
    """
    repository = options.hub_model_id or Path(output_dir).resolve().name
    try:
        check_token(repository, "model", options.hub_revision, options.hub_create_pr)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: --push_to_hub: {error}") from error


def push(folder: Path, options: HubOptions | FinetuneConfig) -> None:
    """Pushes a Hub folder in the `output_dir` of a run, with the TensorBoard logs of the run.

    Args:
        options: without `hub_model_id`, the repository has the name of `output_dir`.

    Raises:
        SystemExit: the push failed. The message has the command that repeats it.
    """
    repository, revision = options.hub_model_id or folder.resolve().parent.name, options.hub_revision
    add_logs(folder)
    try:
        commit = push_hub_folder(
            folder, repository, options.hub_private_repo, revision=revision, create_pr=options.hub_create_pr
        )
    except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
        command = ["python", "-m", "rednet.hub", "push", str(folder), repository]
        command += ["--private"] * bool(options.hub_private_repo)
        command += [] if revision is None else ["--revision", revision]
        command += ["--create_pr"] * options.hub_create_pr
        raise SystemExit(
            f"error: --push_to_hub: {error}\n{folder} is complete. To push it: {shlex.join(command)}"
        ) from error
    print(pushed_url(commit, revision))


def add_logs(folder: Path) -> None:
    """Copies the TensorBoard logs of a run into its Hub folder: the Hub shows them on the page of the model."""
    logs = folder.parent / "runs"
    for path in logs.glob("**/*tfevents*"):
        target = folder / "runs" / path.relative_to(logs)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
