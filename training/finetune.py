"""Fine-tunes a RedNet on your own images with the Trainer of Transformers.

    python training/finetune.py --config configs/training/finetune.yaml \\
      --model_name_or_path your-name/rednet-50 --train_dir pictures --train_val_split 0.2

The model is a Hub id or a folder. It gets a new classifier for the classes of the data set. The first options below are
those of the model, the data and the augmentation; the others are those of transformers.TrainingArguments. The file and
the command line take all of them. The run writes the Hub folder `best`, `results.json`, `log.jsonl` and the newest
checkpoints to `output_dir`. The same command resumes an interrupted run, and only pushes a finished one.
"""

from pathlib import Path
from typing import Any

import rednet
import torch
from accelerate import PartialState
from datasets import Dataset
from rednet.hub import save_hub_folder
from rednet.training.data.mixing import BatchAugmentation
from rednet.training.data.rows import EvaluationRows, TrainingRows
from rednet.training.data.sources import check_images, class_names, distinct_labels, load_images
from rednet.training.data.transforms import normalize
from rednet.training.engine.hub_folder import accuracies, check_push, describe_sizes, push, trained_card
from rednet.training.engine.launch import check_gpus, check_processes, set_threads
from rednet.training.engine.models import check_batch_norm, has_one_pixel, load_classifier
from rednet.training.engine.optimizers import freeze, layer_groups
from rednet.training.engine.run_folder import check_inputs, check_options, only_run
from rednet.training.engine.trainer import (
    ClockCallback,
    EpochCallback,
    ImageTrainer,
    check_checkpoints,
    newest_checkpoint,
    resume_trackers,
)
from rednet.training.metrics.classification import image_size
from rednet.training.metrics.counts import top_k_accuracy, top_k_hits
from rednet.training.options.finetune import FinetuneConfig, explicit_options, parse_finetune_config
from rednet.training.options.groups import NormalizationOptions
from rednet.training.options.models import read_config
from rednet.training.options.resumable import resumable_in_trainer
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors
from rednet.training.utils.files import to_json, write_json, write_text
from rednet.training.utils.hardware import describe_hardware
from torch import Tensor, nn
from torch.utils.data import default_convert
from transformers import ConvNextImageProcessor, EarlyStoppingCallback, EvalPrediction, Trainer, set_seed
from transformers.utils.logging import disable_progress_bar


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    check_processes(config.world_size)
    check_gpus(config.n_gpu)
    folder, options = Path(config.output_dir), explicit_options(config)
    defaults = explicit_options(FinetuneConfig(config.output_dir, use_cpu=config.use_cpu))
    check_options(config.output_dir, options, defaults, resumable_in_trainer(config.load_best_model_at_end))
    check_checkpoints(folder, config.save_total_limit)
    # Trainer would push every checkpoint, with its own card.
    push_to_hub, config.push_to_hub = config.push_to_hub, False
    if push_to_hub and config.process_index == 0:
        check_push(config.output_dir, config)
    hub_folder = folder / ("best" if config.load_best_model_at_end else "last")
    if (folder / "results.json").is_file():
        print(f"{folder} is finished: {folder}/results.json")
    else:
        finetune(config, options, hub_folder)
    if push_to_hub and config.process_index == 0:
        push(hub_folder, config)


def parse_config(arguments: list[str] | None = None) -> FinetuneConfig:
    return parse_finetune_config(arguments, __doc__)


def finetune(config: FinetuneConfig, options: dict, hub_folder: Path) -> None:
    """Trains from the newest checkpoint on, or from the start, and writes the files of the run."""
    disable_progress_bar()  # of loading and saving weights: the training has its own
    set_seed(config.seed)
    with clear_errors():
        with config.main_process_first():
            train_images, eval_images = load_images(config)
        model, processor = load_model(config, label_names(train_images))
        frozen = freeze(model, config.frozen_stages)
        splits = {config.train_split: train_images, config.validation_split: eval_images}
        check_on_main_process(PartialState(), check_images, splits, model.config.num_labels, config)
        height, width = image_size(processor)
        smallest = (min(config.train_image_size),) * 2 if config.train_image_size else (height, width)
        if config.frozen_stages < len(model.rednet.encoder.stages) and has_one_pixel(model, smallest):
            batch_size = config.train_batch_size
            check_batch_norm(model, min(batch_size, len(train_images)), smallest)
            # Several processes fill up their last batches.
            config.dataloader_drop_last = len(train_images) % batch_size == 1 and config.world_size == 1
    config.image_size = height
    config.dataloader_pin_memory &= torch.cuda.is_available()  # torch would warn in every epoch
    with clear_errors():
        trainer = make_trainer(config, model, processor, frozen, train_images, eval_images)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("accelerate launch asks for FSDP or DeepSpeed: fine-tuning requires whole models")
        inputs = check_inputs(config.output_dir, len(train_images), config.world_size, model)
    resume_trackers(trainer, Path(config.output_dir))
    set_threads(config.device)
    folder = Path(config.output_dir)
    with only_run(PartialState(), folder):
        folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_world_process_zero():
            write_json(folder / "options.json", options)
            write_json(folder / "inputs.json", inputs)
        trainer.train(resume_from_checkpoint=newest_checkpoint(folder))

        log = trainer.state.log_history.copy()
        metrics = trainer.evaluate()
        if trainer.is_world_process_zero():
            write_text(folder / "log.jsonl", "".join(to_json(entry) + "\n" for entry in log))
            save(trainer, processor, options, metrics, hub_folder)


def save(
    trainer: ImageTrainer,
    processor: ConvNextImageProcessor,
    options: dict,
    metrics: dict[str, float],
    hub_folder: Path,
) -> None:
    """Writes the Hub folder and results.json.

    Args:
        options: for the card.
        metrics: of the model, as `trainer.evaluate` returns them.
    """
    config, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    results: dict[str, Any] = {
        f"eval_{name}": metrics[f"eval_{name}"] for name in ("accuracy", "top_5_accuracy", "loss")
    }
    results["eval_samples"] = len(trainer.eval_dataset)
    training = describe_training(config, trainer.state.epoch)
    values = accuracies(results, model.config.num_labels)
    clock = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ClockCallback))
    measured = results | {"seconds_by_hardware": clock.seconds}
    trained_at = describe_sizes(config.train_image_size or [config.image_size])
    card = trained_card(model, processor, config, measured, training, trained_at, options, values, config.image_size)
    save_hub_folder(hub_folder, model, processor, card)
    with torch.device("meta"):
        blank = rednet.RedNetForImageClassification(model.config)  # without the hooks of --debug
    results |= {"steps": trainer.state.global_step, "epochs": trainer.state.epoch}
    results |= {"train_samples": len(trainer.train_dataset), "parameters": rednet.count_parameters(model)}
    results |= {"trainable_parameters": rednet.count_parameters(model, trainable_only=True)}
    results |= {"macs": rednet.count_macs(blank, config.image_size, config.image_size)}
    results |= {"threads": torch.get_num_threads(), "device": str(config.device), "torch": torch.__version__}
    write_json(Path(config.output_dir) / "results.json", results)
    print(f"top-1 {100 * results['eval_accuracy']:.2f} % on {results['eval_samples']} images -> {hub_folder}")


def label_names(images: Dataset) -> list[str]:
    """The names of the classes, or their numbers if the data set has no names."""
    return class_names(images) or [str(label) for label in range(max(distinct_labels(images)) + 1)]


def load_model(
    config: FinetuneConfig, labels: list[str]
) -> tuple[rednet.RedNetForImageClassification, ConvNextImageProcessor]:
    """The model and its image processor. The classifier is new unless the model has the same classes.

    Raises:
        ValueError, OSError: the model does not exist, or is not a RedNet.
    """
    own = list(read_config(config.model_name_or_path).id2label.values())
    model, processor = load_classifier(
        config.model_name_or_path,
        config.image_size,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
    )
    if own != labels:  # other classes may have a classifier of the same size
        model.classifier = nn.Linear(model.classifier.in_features, len(labels))
        model._init_weights(model.classifier)
    return model.to(memory_format=torch.channels_last), processor


def make_trainer(
    config: FinetuneConfig,
    model: rednet.RedNetForImageClassification,
    processor: ConvNextImageProcessor,
    frozen: list[nn.Module],
    train_images: Dataset,
    eval_images: Dataset,
) -> ImageTrainer:
    num_labels = model.config.num_labels
    normalization = NormalizationOptions(processor.image_mean, processor.image_std)
    rows = TrainingRows(train_images, config, processor.image_mean, num_labels)
    batch_augmentation = BatchAugmentation(config, num_labels, config.device)
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(config, model)

    def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return batch_augmentation(normalize(images, normalization), labels, rows.epoch)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        ranked, labels = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
        return top_k_accuracy(top_k_hits(ranked, labels), len(labels))

    patience = config.early_stopping_patience
    hardware = describe_hardware(config.device, config.world_size)
    return ImageTrainer(
        model,
        config,
        train_dataset=rows,
        eval_dataset=EvaluationRows(eval_images, processor, num_labels),
        data_collator=default_convert,  # the data sets return batches
        processing_class=processor,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.topk(min(5, num_labels)).indices,
        optimizers=(optimizer(layer_groups(model, config), **settings), None),
        callbacks=[
            EpochCallback(),
            ClockCallback(hardware),
            *([] if patience is None else [EarlyStoppingCallback(patience)]),
        ],
        frozen=frozen,
        augment=augment,
    )


def describe_training(config: FinetuneConfig, epochs: float) -> str:
    """A sentence of the card."""
    frozen = {-1: "nothing", 0: "the stem"}.get(config.frozen_stages, f"the stem and {config.frozen_stages} stage(s)")
    length = f"{epochs:.4g} of at most {config.num_train_epochs:.4g} epochs"
    if config.max_steps > 0:
        length = f"{epochs:.4g} epochs, {config.max_steps} steps at most,"
    schedule = config.lr_scheduler_type.value  # type: ignore[attr-defined]  # an enum by now
    return (
        f"Fine-tuned for {length} with {config.optim.value}, learning "
        f"rate {config.learning_rate:g}, {schedule} schedule, every stage at "
        f"{config.layer_decay:g} of the next one's rate; frozen: {frozen}."
    )


if __name__ == "__main__":
    main()
