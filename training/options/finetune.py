"""The options of finetune.py: those of transformers.TrainingArguments, of the data and of the model."""

from dataclasses import dataclass, fields

from rednet.training.options.augmentation import AugmentationOptions
from rednet.training.options.groups import (
    WORKERS,
    HubOptions,
    PictureOptions,
    TrainingDataOptions,
    option,
    with_default,
)
from rednet.training.options.optimization import FreezingOptions, LayerOptions
from rednet.training.options.parser import check_data_options, check_sizes, parse_options
from rednet.training.options.types import BelowOne, Count, Folder, Natural, NotNegative, Positive, Seed, Sizes
from rednet.training.utils.errors import nearest
from transformers import TrainingArguments


@dataclass
class FinetuneOptions:
    model_name_or_path: str = option("", "The RedNet to start from: a folder or the id of a Hub repository.")
    image_size: Count | None = option(
        None, "Height and width of the model's input; by default that of its image processor."
    )
    train_image_size: Sizes | None = with_default(PictureOptions, "train_image_size", None)
    early_stopping_patience: Count | None = option(
        None, "Stop after this number of evaluations without a better accuracy."
    )


@dataclass
class FinetuneConfig(
    TrainingArguments, AugmentationOptions, TrainingDataOptions, LayerOptions, FreezingOptions, FinetuneOptions
):
    """All options of `finetune.py`. Those of TrainingArguments that are repeated here have other defaults."""

    output_dir: Folder = option("outputs/finetune", "Folder of the run. A run resumes from its own checkpoints.")
    per_device_train_batch_size: Count = option(32, "Images in a training batch of one process.")
    per_device_eval_batch_size: Count = option(64, "Images in an evaluation batch of one process.")
    num_train_epochs: Positive = option(10, "Passes over the training images.")
    learning_rate: NotNegative = option(1e-3, "Learning rate of the classifier.")
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rates: cosine, linear, constant ...")
    eval_strategy: str = option("epoch", "When to evaluate: epoch, steps (eval_steps) or no.")
    save_strategy: str = option("epoch", "When to save a checkpoint: epoch, steps (save_steps), best or no.")
    save_total_limit: Count | None = option(2, "Number of newest checkpoints to keep, in addition to the best one.")
    load_best_model_at_end: bool = option(True, "Save the best model at the end, not the last one.")
    metric_for_best_model: str | None = option(
        "accuracy", "Metric of the best model: accuracy, top_5_accuracy or loss."
    )
    restore_callback_states_from_checkpoint: bool = option(
        True, "A resumed run restores the counter of early stopping."
    )
    gradient_accumulation_steps: Count = option(1, "Batches whose gradients are averaged for one step.")
    weight_decay: NotNegative = option(0.0, "Weight decay.")
    label_smoothing_factor: BelowOne = option(0.0, "Fraction of the target that is spread over all classes.")
    max_grad_norm: NotNegative = option(1.0, "Maximum norm of the gradient; 0 for no limit.")
    seed: Seed = option(42, "Seed of all random numbers.")
    save_steps: Positive = option(500, "Steps between two checkpoints if save_strategy is steps.")
    eval_steps: Positive | None = option(None, "Steps between two evaluations if eval_strategy is steps.")
    remove_unused_columns: bool = option(False, "Must stay false: batches have the columns that the model takes.")
    dataloader_num_workers: Natural = option(WORKERS, "Processes that decode and augment images.")
    logging_steps: Positive = option(50, "Steps between two lines of the log.")
    ddp_find_unused_parameters: bool | None = option(False, "The model has no unused parameters.")
    push_to_hub: bool = option(False, "Push the Hub folder, in one commit, when the run ends; needs `hf auth login`.")
    hub_revision: str | None = with_default(HubOptions, "hub_revision", None)
    hub_create_pr: bool = with_default(HubOptions, "hub_create_pr", False)


# Options of TrainingArguments that would end a run late, or make its results wrong: their valid values, and the reason.
FIXED: dict[str, tuple[tuple, str]] = {
    "remove_unused_columns": ((False,), "batches have the columns that the model takes"),
    "bf16_full_eval": ((False,), "the saved model would be rounded; --bf16 evaluates in bfloat16 as well"),
    "fp16_full_eval": ((False,), "the saved model would be rounded; --fp16 evaluates in float16 as well"),
    "batch_eval_metrics": ((False,), "metrics need the predictions of all images"),
    "prediction_loss_only": ((False,), "the accuracy needs predictions"),
    "eval_do_concat_batches": ((True,), "metrics need the predictions of all images together"),
    "label_names": ((None, ["labels"]), "the batches have this name"),
    "train_sampling_strategy": (("random", "sequential"), "images have no length"),
    "save_only_model": ((False,), "an interrupted run cannot resume without the state of the optimizer"),
    "deepspeed": ((None,), "fine-tuning requires whole models on every process"),
    "fsdp": ((None, "", []), "fine-tuning requires whole models on every process"),
    "use_liger_kernel": ((False,), "its kernels are for language models"),
    "dataloader_drop_last": ((False,), "it would leave out images of the evaluation too"),
    "hub_strategy": (("every_save",), "the Hub folder is pushed once, when the run ends"),
    "hub_always_push": ((False,), "the Hub folder is pushed once, when the run ends"),
}


def parse_finetune_config(arguments: list[str] | None, description: str | None) -> FinetuneConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(FinetuneConfig, arguments, description)
    if not config.model_name_or_path:
        parser.error("give --model_name_or_path, a folder or the id of a Hub repository")
    check_data_options(config, parser)
    check_sizes(config.train_image_size, config.num_train_epochs, config.max_steps > 0, parser)
    if config.streaming:
        parser.error("--streaming is not supported: fine-tuning draws images by number")
    if config.dataloader_persistent_workers:
        parser.error("--dataloader_persistent_workers: persistent workers would repeat the crops of the first epoch")
    for name in ("hub_token", "resume_from_checkpoint"):
        if getattr(config, name):
            instead = "use `hf auth login`, or set HF_TOKEN" if name == "hub_token" else "a run finds its checkpoints"
            parser.error(f"--{name} is not supported: {instead}")
    for name, (valid, reason) in FIXED.items():
        value = getattr(config, name)
        if value not in valid:
            parser.error(f"--{name} is {getattr(value, 'value', value)!r}, expected {valid[0]!r}: {reason}")
    if config.early_stopping_patience is not None:
        if not config.load_best_model_at_end or config.metric_for_best_model is None:
            parser.error("--early_stopping_patience needs --load_best_model_at_end and --metric_for_best_model")
    metrics = ["accuracy", "top_5_accuracy", "loss"]
    metric = (config.metric_for_best_model or "accuracy").removeprefix("eval_")
    if metric not in metrics:
        parser.error(f"--metric_for_best_model is {metric!r}, expected one of {metrics}{nearest(metric, metrics)}")
    if config.greater_is_better not in (None, metric != "loss"):
        parser.error(
            f"--greater_is_better is {config.greater_is_better}: the best model would be that with the worst {metric}"
        )
    return config


def explicit_options(config: FinetuneConfig) -> dict:
    """The options of finetune.py, and those of TrainingArguments that differ from their defaults."""
    own = {field.name for field in fields(config)} - {field.name for field in fields(TrainingArguments)}
    own |= FinetuneConfig.__annotations__.keys()
    defaults = TrainingArguments(config.output_dir).to_dict()
    return {name: value for name, value in config.to_dict().items() if name in own or value != defaults[name]}
