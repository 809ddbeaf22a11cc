"""What a training run leaves: a complete Hub folder, with a card that says what was trained and what it reaches."""

from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard
from transformers import BaseImageProcessor

import rednet
from arguments import DataOptions, TrainingConfig
from data import source
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
    hub.save_hub_folder(folder, model, processor, trained_card(model, config, results, training, asdict(config)))


def trained_card(
    model: rednet.RedNetForImageClassification, config: TrainingConfig, results: dict, training: str, options: dict
) -> ModelCard:
    """The card of a model that was trained by `config`, in the words of `training`, and by `options` in full."""
    title, origin = (
        title_of(config),
        f"from {config.model_name_or_path}" if config.model_name_or_path else "from scratch",
    )
    local_model = config.model_name_or_path is not None and Path(config.model_name_or_path).exists()
    held_out = f"of its split `{config.validation_split}`"
    if config.train_val_split is not None:
        held_out = f"of it that were held out, a part of {config.train_val_split}"
    elif config.validation_dir is not None:
        held_out = f"of {Path(config.validation_dir).name}"
    introduction = (
        f"A RedNet for image classification, trained {origin} on {title}, and measured on the "
        f"{results['eval_samples']:,} images {held_out}."
    )
    return make_card(
        model.config,
        f"RedNet, trained on {title}",
        f"rednet-{title.replace(' ', '-')}",
        introduction,
        training,
        image_size=config.image_size,
        results=measured(config, results, model.config.num_labels),
        datasets=None if Path(source(config)).exists() else [source(config)],
        base_model=None if local_model else config.model_name_or_path,
        options=yaml.safe_dump(options, sort_keys=False).strip(),
    )


def title_of(config: DataOptions) -> str:
    return source(config).rstrip("/").split("/")[-1].replace("_", " ")


def measured(config: DataOptions, results: dict, num_labels: int) -> list[EvalResult]:
    """Accuracies in the form of a card. There is no top-5 accuracy of five classes."""
    metrics = {"Top-1": results["eval_accuracy"]}
    if num_labels > 5:
        metrics["Top-5"] = results["eval_top_5_accuracy"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=source(config).rstrip("/"),
            dataset_name=title_of(config),
            dataset_split=config.validation_split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]


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
