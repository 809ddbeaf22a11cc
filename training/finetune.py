"""Fine-tunes a RedNet on pictures of your own, with the Trainer of Transformers.

    python training/finetune.py --config configs/training/finetune.yaml \\
      --model_name_or_path your-name/rednet-50 --train_dir pictures --train_val_split 0.2

The model is a Hub id or a folder; it gets a new classifier for the classes of the data set. The first options below are
for the data, the model and what changes the pictures; the others are those of transformers.TrainingArguments. All may
stand in the file or on the command line. In `output_dir` appear the Hub folder `best`, `results.json`, `log.jsonl` and
the newest checkpoints. Interrupted, the same command goes on from the last one; a finished run is only pushed.
"""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

import rednet
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast
from datasets import Dataset, Image
from rednet.hub import save_hub_folder
from rednet.training.data.batches import EvaluationBatches, TrainingBatches
from rednet.training.data.sources import check_images, class_names, distinct_labels, load_images
from rednet.training.data.transforms import make_mixing, normalize
from rednet.training.engine.hub_folder import accuracies, check_push, push, trained_card
from rednet.training.engine.loop import check_batch_norm, check_processes, is_one_pixel, parameter_groups, set_threads
from rednet.training.engine.run_folder import check_options
from rednet.training.metrics.classification import image_size, load_metric
from rednet.training.options.groups import WORKERS, AugmentationOptions, PictureOptions, TrainingDataOptions, option
from rednet.training.options.models import read_config
from rednet.training.options.parser import check_data_options, parse_options
from rednet.training.options.types import BelowOne, Count, Natural, NotNegative, Positive, Scale, Seed
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors, nearest
from rednet.training.utils.files import to_json, write_json, write_text
from torch import nn
from torch.utils.data import default_convert
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar


@dataclass
class FinetuneOptions:
    model_name_or_path: str = option("", "The RedNet to start from: a folder or the id of a Hub repository.")
    image_size: Count | None = option(
        None, "Height and width that the model sees; by default as its processor has it."
    )
    frozen_stages: int = option(
        -1, "What stays as it is, with its BatchNorm statistics: 0 the stem, n the stem and stages 1 to n; -1 nothing."
    )
    layer_decay: Scale = option(
        1.0, "Each stage learns at this part of the rate of the next one, the classifier at the full rate."
    )
    no_decay_on_norm_and_bias: bool = option(False, "No weight decay on BatchNorm and biases.")
    early_stopping_patience: Count | None = option(None, "Stop after so many evaluations without a better accuracy.")


@dataclass
class FinetuneConfig(TrainingArguments, AugmentationOptions, TrainingDataOptions, FinetuneOptions):
    """What `finetune.py` can be told: also all of TrainingArguments, some with other defaults."""

    output_dir: str = option("outputs/finetune", "Everything goes here; a run that finds its own checkpoints resumes.")
    per_device_train_batch_size: Count = option(32, "Images in a training batch of one process.")
    per_device_eval_batch_size: Count = option(64, "Images in an evaluation batch of one process.")
    num_train_epochs: Positive = option(10, "Passes over the training images.")
    learning_rate: NotNegative = option(1e-3, "Learning rate of the classifier.")
    lr_scheduler_type: str = option("cosine", "Schedule of the learning rates: cosine, linear, constant ...")
    eval_strategy: str = option("epoch", "When to evaluate: epoch, steps (eval_steps) or no.")
    save_strategy: str = option("epoch", "When to save a checkpoint: epoch, steps (save_steps), best or no.")
    save_total_limit: Count | None = option(2, "How many of the newest checkpoints stay, beside the best one.")
    load_best_model_at_end: bool = option(True, "The model that is left is the best one, not the last.")
    metric_for_best_model: str | None = option("accuracy", "What is better: accuracy, top_5_accuracy or loss.")
    restore_callback_states_from_checkpoint: bool = option(
        True, "A resumed run remembers what early stopping counted."
    )
    gradient_accumulation_steps: Count = option(1, "Batches whose gradients are averaged for one step.")
    weight_decay: NotNegative = option(0.0, "Weight decay.")
    label_smoothing_factor: BelowOne = option(0.0, "Part of the target that is spread over all classes.")
    max_grad_norm: NotNegative = option(1.0, "Gradients are scaled down to this norm; 0 for not at all.")
    seed: Seed = option(42, "Seed of everything random.")
    save_steps: Positive = option(500, "Steps between two checkpoints, where save_strategy is steps.")
    eval_steps: Positive | None = option(None, "Steps between two evaluations, where eval_strategy is steps.")
    remove_unused_columns: bool = option(False, "Must stay false: batches have what the model takes.")
    dataloader_num_workers: Natural = option(WORKERS, "Processes that decode and augment images.")
    logging_steps: Positive = option(50, "Steps between two lines of the log.")
    ddp_find_unused_parameters: bool | None = option(False, "The model has none.")
    push_to_hub: bool = option(False, "Push the Hub folder, in one commit, when the run ends; needs `hf auth login`.")


# Options of TrainingArguments that would stop a run late, or make what it leaves wrong: what is expected, and why.
FIXED: dict[str, tuple[tuple, str]] = {
    "remove_unused_columns": ((False,), "batches have what the model takes"),
    "bf16_full_eval": ((False,), "the model that is saved would be rounded; --bf16 evaluates in bfloat16 as well"),
    "fp16_full_eval": ((False,), "the model that is saved would be rounded; --fp16 evaluates in float16 as well"),
    "batch_eval_metrics": ((False,), "the metrics are those of all images; five numbers of each are kept"),
    "prediction_loss_only": ((False,), "the accuracy needs predictions"),
    "eval_do_concat_batches": ((True,), "the metrics are those of all images together"),
    "label_names": ((None, ["labels"]), "so the batches call them"),
    "train_sampling_strategy": (("random", "sequential"), "images have no length"),
    "save_only_model": ((False,), "an interrupted run could not resume without the optimizer's state"),
    "deepspeed": ((None,), "fine-tuning runs on whole models, one for each process"),
    "fsdp": ((None, "", []), "fine-tuning runs on whole models, one for each process"),
    "use_liger_kernel": ((False,), "its kernels are for language models"),
    "dataloader_drop_last": ((False,), "images to evaluate on would be left out as well"),
    "hub_strategy": (("every_save",), "the Hub folder is pushed once, when the run ends"),
    "hub_always_push": ((False,), "the Hub folder is pushed once, when the run ends"),
    "hub_revision": ((None,), "the Hub folder is pushed to the main branch"),
}


class TrainingRows(TrainingBatches):
    """Batches of the rows that Trainer draws. What happens to a picture follows from seed, epoch and row."""

    epoch = 0

    def __init__(self, images: Dataset, config: FinetuneConfig, num_labels: int):
        super().__init__(images.cast_column("image", Image(decode=False)), config, num_labels)
        self.seed = config.seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return super().__getitems__([((self.seed, self.epoch, row), row) for row in rows])


class EvaluationRows(EvaluationBatches):
    """Batches of the rows that Trainer draws, as the image processor makes them."""

    def __init__(self, images: Dataset, processor: BaseImageProcessor, num_labels: int):
        super().__init__(images.cast_column("image", Image(decode=False)), processor, num_labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return super().__getitems__([(True, row) for row in rows])


class EpochOfPictures(TrainerCallback):
    """Tells `TrainingRows` the epoch: `set_epoch` of a loader does not where Trainer goes on within an epoch."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        train_dataloader.dataset.epoch = int(state.epoch or 0)


class FinetuneTrainer(Trainer):
    """
    Trainer for pictures as bytes, which are normalised, and mixed, where the model is.

    Args:
        frozen: modules whose BatchNorm keeps its statistics.
        pictures: mean and standard deviation of the channels.
    """

    def __init__(
        self, *args, frozen: list[nn.Module], pictures: PictureOptions, mixing: v2.Transform | None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.frozen, self.pictures, self.mixing = frozen, pictures, mixing

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, labels, smoothing = inputs["pixel_values"], inputs["labels"], 0.0
        if model.training:
            for module in self.frozen:  # Trainer puts the whole model into training mode before every step
                module.eval()
            images, smoothing = normalize(images, self.pictures), self.args.label_smoothing_factor
            if self.mixing is not None:
                images, labels = self.mixing(images, labels)
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(outputs.logits.float(), labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, *args, **kwargs):
        # A last batch of one image is left out of the training only.
        self.args.dataloader_drop_last, drop_last = False, self.args.dataloader_drop_last
        loader = super().get_eval_dataloader(*args, **kwargs)
        self.args.dataloader_drop_last = drop_last
        return loader

    def evaluate(self, *args, **kwargs):
        # Each process has statistics of its own batches; those of the first are saved, so all evaluate with them.
        broadcast(list(self.model.buffers()))
        return super().evaluate(*args, **kwargs)


def main(arguments: list[str] | None = None) -> None:
    config = parse(arguments)
    check_processes(config.world_size)
    folder, options = Path(config.output_dir), told(config)
    check_options(config.output_dir, options)
    check_checkpoints(folder, config.save_total_limit)
    # Trainer would push every checkpoint, with a card of its own.
    push_to_hub, config.push_to_hub = config.push_to_hub, False
    if push_to_hub and config.process_index == 0:
        check_push(config.output_dir, config.hub_model_id)
    hub_folder = folder / ("best" if config.load_best_model_at_end else "last")
    if (folder / "results.json").is_file():
        print(f"{folder} is finished: {folder}/results.json")
    else:
        finetune(config, options, hub_folder)
    if push_to_hub and config.process_index == 0:
        push(hub_folder, config.hub_model_id, config.hub_private_repo)


def parse(arguments: list[str] | None) -> FinetuneConfig:
    config, parser = parse_options(FinetuneConfig, arguments, __doc__)
    if not config.model_name_or_path:
        parser.error("give --model_name_or_path, a folder or the id of a Hub repository")
    check_data_options(config, parser)
    if config.streaming:
        parser.error("--streaming: fine-tuning draws its images by number; load them without it")
    if config.dataloader_persistent_workers:
        parser.error("--dataloader_persistent_workers: workers that live on would repeat the crops of the first epoch")
    for name in ("hub_token", "resume_from_checkpoint"):
        if getattr(config, name):
            cure = "`hf auth login`, or set HF_TOKEN" if name == "hub_token" else "a run finds its newest checkpoint"
            parser.error(f"--{name} is not used here: {cure}")
    for name, (only, reason) in FIXED.items():
        value = getattr(config, name)
        if value not in only:
            parser.error(f"--{name} is {getattr(value, 'value', value)!r}, expected {only[0]!r}: {reason}")
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


def told(config: FinetuneConfig) -> dict:
    """The options of this script, and of the others those that are not as TrainingArguments has them."""
    own = {field.name for field in fields(config)} - {field.name for field in fields(TrainingArguments)}
    own |= FinetuneConfig.__annotations__.keys()
    usual = TrainingArguments(config.output_dir).to_dict()
    return {name: value for name, value in config.to_dict().items() if name in own or value != usual[name]}


def finetune(config: FinetuneConfig, options: dict, hub_folder: Path) -> None:
    disable_progress_bar()  # those of loading and saving weights; the training has its own
    set_seed(config.seed)
    with clear_errors():
        with config.main_process_first():
            train_images, eval_images = load_images(config)
        model, processor = load_model(config, label_names(train_images))
        frozen = freeze(model, config.frozen_stages)
        splits = {config.train_split: train_images, config.validation_split: eval_images}
        check_on_main_process(PartialState(), check_images, splits, model.config.num_labels, config)
        height, width = image_size(processor)
        if config.frozen_stages < len(model.rednet.encoder.stages) and is_one_pixel(model, (height, width)):
            batch_size = config.train_batch_size
            check_batch_norm(model, min(batch_size, len(train_images)), (height, width))
            # Several processes fill up their last batches.
            config.dataloader_drop_last = len(train_images) % batch_size == 1 and config.world_size == 1
    config.image_size = height
    config.dataloader_pin_memory &= torch.cuda.is_available()  # else torch warns in every epoch
    with clear_errors():
        trainer = make_trainer(config, model, processor, frozen, train_images, eval_images)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("accelerate launch asks for FSDP or DeepSpeed: fine-tuning runs on whole models")
    set_threads(config.device)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.is_world_process_zero():
        write_json(folder / "options.json", options)
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))

    log = trainer.state.log_history.copy()
    results = trainer.evaluate()
    results = {name: results[f"eval_{name}"] for name in ("accuracy", "top_5_accuracy", "loss")}
    results = {f"eval_{name}": value for name, value in results.items()} | {"eval_samples": len(eval_images)}
    if trainer.is_world_process_zero():
        plain = trainer.accelerator.unwrap_model(trainer.model)
        metrics = accuracies(results, plain.config.num_labels)
        trained = recipe(config, trainer.state.epoch)
        card = trained_card(plain, config, results, trained, options, metrics, config.image_size)
        save_hub_folder(hub_folder, plain, processor, card)
        write_text(folder / "log.jsonl", "".join(to_json(entry) + "\n" for entry in log))
        results |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
        results |= {"train_samples": len(train_images), "parameters": rednet.count_parameters(plain)}
        results |= {"trainable_parameters": rednet.count_parameters(plain, trainable_only=True)}
        with torch.device("meta"):
            blank = rednet.RedNetForImageClassification(plain.config)  # without hooks of --debug
        results |= {"macs": rednet.count_macs(blank, config.image_size, config.image_size)}
        results |= {"threads": torch.get_num_threads(), "device": str(config.device), "torch": torch.__version__}
        write_json(folder / "results.json", results)
        print(f"top-1 {100 * results['eval_accuracy']:.2f} % on {results['eval_samples']} images -> {hub_folder}")


def label_names(images: Dataset) -> list[str]:
    """What the classes are called: their numbers where the data set has no names."""
    return class_names(images) or [str(label) for label in range(max(distinct_labels(images)) + 1)]


def load_model(
    config: FinetuneConfig, labels: list[str]
) -> tuple[rednet.RedNetForImageClassification, BaseImageProcessor]:
    """The model, with a new classifier unless it has one for these very classes, and its image processor.

    Raises:
        ValueError, OSError: there is no such model, or it is no RedNet.
    """
    name = config.model_name_or_path
    known = read_config(name)
    model = AutoModelForImageClassification.from_pretrained(
        name,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )
    if list(known.id2label.values()) != labels:  # as many other classes have a classifier of the same size
        model.classifier = nn.Linear(model.classifier.in_features, len(labels))
        model._init_weights(model.classifier)
    size = {} if config.image_size is None else {"size": {"shortest_edge": config.image_size}}
    return model.to(memory_format=torch.channels_last), AutoImageProcessor.from_pretrained(name, **size)


def parts(model: rednet.RedNetForImageClassification) -> list[nn.Module]:
    """Stem, stages and classifier."""
    return [model.rednet.embedder, *model.rednet.encoder.stages, model.classifier]


def freeze(model: rednet.RedNetForImageClassification, frozen_stages: int) -> list[nn.Module]:
    """Takes the stem and the first `frozen_stages` stages out of the training, nothing at -1, and returns them."""
    stages = len(model.rednet.encoder.stages)
    if not -1 <= frozen_stages <= stages:
        raise ValueError(f"--frozen_stages is {frozen_stages}, expected -1 (nothing) to {stages}, the model's stages")
    frozen = parts(model)[: frozen_stages + 1]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def layer_groups(model: rednet.RedNetForImageClassification, config: FinetuneConfig) -> list[dict]:
    """Groups for an optimizer: the classifier at the learning rate, each part before it at `layer_decay` of the next."""
    groups = []
    for distance, part in enumerate(reversed(parts(model))):
        if next(part.parameters()).requires_grad:
            rate = config.learning_rate * config.layer_decay**distance
            groups += [{**group, "lr": rate} for group in parameter_groups(part, config)]
    return groups


def make_trainer(
    config: FinetuneConfig,
    model: rednet.RedNetForImageClassification,
    processor: BaseImageProcessor,
    frozen: list[nn.Module],
    train_images: Dataset,
    eval_images: Dataset,
) -> FinetuneTrainer:
    metric, num_labels = load_metric("top_k_accuracy"), model.config.num_labels
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(config, model)

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        return metric.compute(predictions=prediction.predictions.tolist(), references=prediction.label_ids.tolist())

    patience = config.early_stopping_patience
    return FinetuneTrainer(
        model,
        config,
        train_dataset=TrainingRows(train_images, config, num_labels),
        eval_dataset=EvaluationRows(eval_images, processor, num_labels),
        data_collator=default_convert,  # they are batches already
        processing_class=processor,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.topk(min(5, num_labels)).indices,
        optimizers=(optimizer(layer_groups(model, config), **settings), None),
        callbacks=[EpochOfPictures(), *([] if patience is None else [EarlyStoppingCallback(patience)])],
        frozen=frozen,
        pictures=PictureOptions(image_mean=processor.image_mean, image_std=processor.image_std),
        mixing=make_mixing(config, num_labels),
    )


def check_checkpoints(folder: Path, limit: int | None) -> None:
    """Refuses folders of others among the checkpoints: Trainer keeps `limit` of all that are named checkpoint-..., and
    deletes the rest with all that is in them."""
    other = [str(path) for path in sorted(folder.glob("checkpoint-*")) if path.is_dir() and not is_checkpoint(path)]
    if other and limit is not None:
        raise SystemExit(
            f"error: {', '.join(other)}: Trainer would take each for an old checkpoint, and delete it. Give it a name "
            "that does not begin with checkpoint-"
        )


def is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def newest_checkpoint(folder: Path) -> str | None:
    """The newest that is complete: Trainer writes its state last. Folders of other names, such as copies, are no
    checkpoints of this run."""
    found = sorted(filter(is_checkpoint, folder.glob("checkpoint-*")), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    return None


def recipe(config: FinetuneConfig, epochs: float) -> str:
    """How it was trained, as a sentence of the card."""
    frozen = {-1: "nothing", 0: "the stem"}.get(config.frozen_stages, f"the stem and {config.frozen_stages} stage(s)")
    length = f"{epochs:.4g} of at most {config.num_train_epochs:.4g} epochs"
    if config.max_steps > 0:
        length = f"{epochs:.4g} epochs, {config.max_steps} steps at most,"
    return (
        f"Fine-tuned for {length} with {config.optim.value}, learning "
        f"rate {config.learning_rate:g}, {config.lr_scheduler_type.value} schedule, every stage at "
        f"{config.layer_decay:g} of the next one's rate; frozen: {frozen}."
    )


if __name__ == "__main__":
    main()
