"""Trains a RedNet for image classification with Accelerate.

    accelerate launch training/train.py --config configs/training/fashion_mnist.yaml

Every option of the file can be given on the command line as well (`--help`). In `output_dir` appear `log.jsonl`,
`results.json`, the newest `checkpoints`, and the complete Hub folders `best` and `last`. A run that was interrupted
goes on from its newest checkpoint when it is started again with the same options; a finished one is evaluated only.
"""

import json
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import evaluate
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification, ConvNextImageProcessor
from transformers.utils.logging import disable_progress_bar

import rednet
from arguments import TrainingConfig, parse_config
from data import EvaluationCollator, TrainingCollator, load_images, normalize
from hub_folder import save_hub_folder
from rednet.hub import check_token, push_hub_folder


class Progress:
    """What of a run Accelerate does not save by itself: where it is, and the best accuracy so far."""

    def __init__(self) -> None:
        self.epoch = 0
        self.step_in_epoch = 0  # batches, not optimizer steps
        self.step = 0  # optimizer steps
        self.best_accuracy = -1.0
        self.seconds = 0.0

    def state_dict(self) -> dict:
        return vars(self).copy()

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def main() -> None:
    config = parse_config()
    disable_progress_bar()  # those of loading and saving weights; the training has its own
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to.split(",") if config.report_to else None,
        project_dir=output_dir,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    if accelerator.device.type == "cpu" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # `accelerate launch` (which sets that variable) leaves processes without a GPU one thread each.
        torch.set_num_threads(max(os.cpu_count() // accelerator.num_processes, 1))
    check_options(output_dir, config)
    if config.push_to_hub:
        check_push()
    set_seed(config.seed)

    with accelerator.main_process_first():
        train_images, eval_images = load_images(config)
    processor = make_processor(config)
    model = make_model(config, train_images.features["label"].names)
    train_loader, eval_loader = make_loaders(config, train_images, eval_images, processor)
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "options.json", asdict(config))
    model, optimizer, train_loader, eval_loader = accelerator.prepare(model, optimizer, train_loader, eval_loader)

    steps_per_epoch = math.ceil(len(train_loader) / config.gradient_accumulation_steps)
    total_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch
    # Not prepared: Accelerate would step it once for every process.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, total_steps, config))
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    resume(accelerator, output_dir, progress)
    if accelerator.is_main_process:
        drop_log_after(output_dir / "log.jsonl", progress.step)
    accelerator.init_trackers("rednet", asdict(config))

    bar = tqdm(total=total_steps, initial=progress.step, unit="step", disable=not accelerator.is_local_main_process)
    results = {}
    while progress.step < total_steps:
        train_epoch(accelerator, config, model, optimizer, scheduler, train_loader, progress, total_steps, bar)
        results = evaluate_model(accelerator, model, eval_loader)
        log(accelerator, output_dir, progress, {"epoch": progress.epoch, **results})
        bar.write(f"epoch {progress.epoch}: top-1 {100 * results['eval_accuracy']:.2f} %")
        if results["eval_accuracy"] > progress.best_accuracy:
            progress.best_accuracy = results["eval_accuracy"]
            save(accelerator, output_dir / "best", model, processor, config, results)
        if config.checkpointing_steps == "epoch" or progress.step >= total_steps:
            save_checkpoint(accelerator, config, progress)
    bar.close()

    results = results or evaluate_model(accelerator, model, eval_loader)
    save(accelerator, output_dir / "last", model, processor, config, results)
    if accelerator.is_main_process:
        results |= {"best_eval_accuracy": progress.best_accuracy, "steps": progress.step, "epochs": progress.epoch}
        results |= {"train_seconds": round(progress.seconds, 1), "train_samples": len(train_images)}
        results |= {"parameters": rednet.count_parameters(model), "threads": torch.get_num_threads()}
        results |= {"device": str(accelerator.device), "torch": torch.__version__}
        write_json(output_dir / "results.json", results)
        print(f"top-1 {100 * results['eval_accuracy']:.2f} % on {results['eval_samples']} images -> {output_dir}/last")
        if config.push_to_hub:
            push(output_dir, config)
    accelerator.end_training()


def make_processor(config: TrainingConfig) -> ConvNextImageProcessor:
    return ConvNextImageProcessor(
        size={"shortest_edge": config.image_size},
        crop_pct=config.crop_pct,
        resample=2,  # bilinear
        image_mean=config.image_mean,
        image_std=config.image_std,
        do_convert_rgb=True,
    )


def make_model(config: TrainingConfig, labels: list[str]) -> rednet.RedNetForImageClassification:
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    if config.model_name_or_path is not None:
        model = AutoModelForImageClassification.from_pretrained(
            config.model_name_or_path, ignore_mismatched_sizes=True, **names
        )
    else:
        model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(config.config_name, **names))
    return model.to(memory_format=torch.channels_last)


def make_loaders(config: TrainingConfig, train_images, eval_images, processor) -> tuple[DataLoader, DataLoader]:
    workers = {"num_workers": config.dataloader_num_workers, "pin_memory": torch.cuda.is_available()}
    train_loader = DataLoader(
        train_images,
        batch_size=config.per_device_train_batch_size,
        shuffle=True,
        drop_last=True,  # a small batch at the end would weigh its images more than the others
        collate_fn=TrainingCollator(config),
        **workers,
    )
    if len(train_loader) == 0:
        raise ValueError(
            f"per_device_train_batch_size is {config.per_device_train_batch_size}, but there are only "
            f"{len(train_images)} images to train on"
        )
    eval_loader = DataLoader(
        eval_images,
        batch_size=config.per_device_eval_batch_size,
        collate_fn=EvaluationCollator(processor),
        **workers,
    )
    return train_loader, eval_loader


def schedule(step: int, total_steps: int, config: TrainingConfig) -> float:
    """The learning rate as a part of the configured one: cosine to 0, under a linear warm-up at the start."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1)))
    if step >= config.num_warmup_steps:
        return cosine
    return cosine * (config.warmup_start_factor + (1 - config.warmup_start_factor) * step / config.num_warmup_steps)


def train_epoch(accelerator, config, model, optimizer, scheduler, loader, progress, total_steps, bar) -> None:
    """Trains to the end of the epoch, or of the run, from where `progress` is."""
    model.train()
    # Order and augmentation of the images depend on seed and epoch, not on what ran before. (Resumed in mid-epoch, the
    # order is that of the run that was interrupted, the crops and flips of what is left of the epoch are others.)
    set_seed(config.seed + progress.epoch, device_specific=True)
    loader.set_epoch(progress.epoch)
    batches = accelerator.skip_first_batches(loader, progress.step_in_epoch) if progress.step_in_epoch else loader
    start, images, losses, grad_norm = time.perf_counter(), 0, [], None
    for batch in batches:
        with accelerator.accumulate(model):
            logits = model(normalize(batch["pixel_values"], config)).logits
            loss = F.cross_entropy(logits, batch["labels"], label_smoothing=config.label_smoothing)
            accelerator.backward(loss)
            if accelerator.sync_gradients and config.max_grad_norm is not None:
                grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            if accelerator.sync_gradients:
                scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        images += len(batch["labels"]) * accelerator.num_processes
        progress.step_in_epoch += 1
        if not accelerator.sync_gradients:
            continue

        progress.step += 1
        bar.update()
        if progress.step % config.logging_steps == 0 or progress.step == total_steps:
            mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the loss is {mean} at step {progress.step}; the checkpoints in {config.output_dir} are from "
                    "before. A lower learning rate, or --max_grad_norm 1, helps"
                )
            seconds = time.perf_counter() - start
            values = {"loss": mean, "learning_rate": scheduler.get_last_lr()[0], "images_per_second": images / seconds}
            if grad_norm is not None:
                values["grad_norm"] = float(grad_norm)
            log(accelerator, Path(config.output_dir), progress, values)
            bar.set_postfix(loss=f"{mean:.3f}", images_per_s=f"{images / seconds:.0f}")
            progress.seconds += seconds
            start, images, losses = time.perf_counter(), 0, []
        if progress.step >= total_steps:
            break  # its checkpoint comes after the evaluation
        if config.checkpointing_steps != "epoch" and progress.step % int(config.checkpointing_steps) == 0:
            save_checkpoint(accelerator, config, progress)
    progress.seconds += time.perf_counter() - start
    progress.epoch += 1
    progress.step_in_epoch = 0


@torch.no_grad()
def evaluate_model(accelerator: Accelerator, model, loader: DataLoader) -> dict:
    """Top-1 and top-5 accuracy and the mean cross-entropy over all images."""
    model.eval()
    metric = evaluate.load(str(Path(__file__).parent / "metrics/top_k_accuracy.py"))
    losses = []
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        logits = model(batch["pixel_values"].contiguous(memory_format=torch.channels_last)).logits
        logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
        ranked = logits.topk(min(5, logits.shape[1])).indices
        metric.add_batch(predictions=ranked.tolist(), references=labels.tolist())
        losses.append(F.cross_entropy(logits.float(), labels, reduction="none"))
    losses = torch.cat(losses)
    results = {f"eval_{name}": value for name, value in metric.compute().items()}
    return {**results, "eval_loss": losses.mean().item(), "eval_samples": len(losses)}


def save(accelerator: Accelerator, folder: Path, model, processor, config: TrainingConfig, results: dict) -> None:
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_hub_folder(folder, accelerator.unwrap_model(model), processor, config, results)


def check_push() -> None:
    """Before hours of training, not after them."""
    try:
        check_token()
    except PermissionError as error:
        raise SystemExit(f"--push_to_hub: {error}") from error


def push(output_dir: Path, config: TrainingConfig) -> None:
    folder, repository = output_dir / "last", config.hub_model_id or output_dir.resolve().name
    try:
        print(push_hub_folder(folder, repository).repo_url)
    except Exception as error:  # what a broken connection raises differs between releases of huggingface_hub
        raise SystemExit(
            f"{folder} is whole, but was not pushed: {error}\n"
            f"To push it: python training/push_to_hub.py {folder} {repository}"
        ) from error


def check_options(output_dir: Path, config: TrainingConfig) -> None:
    """Refuses an `output_dir` that belongs to a run with other options."""
    path = output_dir / "options.json"
    if path.exists():
        before, options = json.loads(path.read_text()), asdict(config)
        elsewhere = ("output_dir", "push_to_hub", "hub_model_id")  # where it goes, not what it is
        changed = [name for name in options if options[name] != before.get(name) and name not in elsewhere]
        if changed:
            differences = ", ".join(f"{name} {before.get(name)!r} -> {options[name]!r}" for name in changed)
            raise SystemExit(
                f"{output_dir} holds a run with other options ({differences}). Give another --output_dir, or remove it"
            )


def save_checkpoint(accelerator: Accelerator, config: TrainingConfig, progress: Progress) -> None:
    """Writes the state beside its place, then renames it; removes the oldest ones beyond the limit."""
    folder = Path(config.output_dir) / "checkpoints"
    beside, final = folder / "new", folder / f"step_{progress.step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(beside)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        for old in checkpoints(folder)[: -config.checkpoints_total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted(folder.glob("step_*"))


def resume(accelerator: Accelerator, output_dir: Path, progress: Progress) -> None:
    if found := checkpoints(output_dir / "checkpoints"):
        accelerator.load_state(found[-1])
        accelerator.print(f"Going on from step {progress.step}, epoch {progress.epoch} ({found[-1]})")


def log(accelerator: Accelerator, output_dir: Path, progress: Progress, values: dict) -> None:
    """One line of log.jsonl, and the same to the trackers."""
    accelerator.log(values, step=progress.step)
    if accelerator.is_main_process:
        with open(output_dir / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": progress.step, **values}) + "\n")


def drop_log_after(path: Path, step: int) -> None:
    """What an interrupted run logged after its last checkpoint will be logged again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
        write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= step))


def write_json(path: Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    main()
