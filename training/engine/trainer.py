"""transformers.Trainer for images: augmentation on the device, frozen stages, checkpoints, trackers that continue their
runs."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from rednet.training.engine.trackers import PROJECT, run_id, wandb_options
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import ExportableState


class EpochCallback(TrainerCallback):
    """Sets the epoch of `TrainingRows`. Trainer does not if it resumes within an epoch. The intervals of logs and
    checkpoints are those of the options; Trainer would take them from the checkpoint."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        kwargs["train_dataloader"].dataset.epoch = int(state.epoch or 0)


class ClockCallback(TrainerCallback, ExportableState):
    """Measures the seconds of training, with evaluations, by hardware. Those before a checkpoint are in its state.

    Args:
        hardware: the name of that of this process and of all others.
    """

    def __init__(self, hardware: str):
        self.hardware = hardware
        self.seconds: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__)  # of the checkpoint that the training resumes from
        self.seconds = dict(saved["attributes"]["seconds"]) if saved else {}
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.seconds[self.hardware] = self.seconds.get(self.hardware, 0.0) + now - self.last
        self.last = now

    def state(self) -> dict:
        return {"args": {"hardware": self.hardware}, "attributes": {"seconds": dict(self.seconds)}}


class TensorBoardLog(TensorBoardCallback):
    """Writes all logs of a run into one folder, and hides steps that come after the checkpoint it resumes from."""

    def __init__(self, folder: Path):
        super().__init__()
        logs = os.environ.get("TENSORBOARD_LOGGING_DIR", str(folder / "runs" / PROJECT))
        self.logging_dir: str = os.path.expanduser(logs)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter  # which may not be installed

            self.tb_writer = SummaryWriter(self.logging_dir, purge_step=state.global_step)
        super().on_train_begin(args, state, control, **kwargs)
        for entry in state.log_history:  # up to the checkpoint
            if entry["step"] == state.global_step:
                logs = {name: value for name, value in entry.items() if name != "step"}
                self.on_log(args, state, control, logs=logs)


class WandbLog(WandbCallback):
    """Continues the run of W&B."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def setup(self, args, state, model, **kwargs):
        if state.is_world_process_zero and self._wandb.run is None:
            project = os.environ.get("WANDB_PROJECT", "huggingface")  # as in Trainer
            self._wandb.init(project=project, name=args.run_name, **wandb_options(self.folder))
        super().setup(args, state, model, **kwargs)


class TrackioLog(TrackioCallback):
    """Continues the run of Trackio, which knows runs by their names."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def setup(self, args, state, model, **kwargs):
        if state.is_world_process_zero:
            args.run_name = args.run_name or run_id(self.folder)
        super().setup(args, state, model, **kwargs)


def resume_trackers(trainer: Trainer, folder: Path) -> None:
    """Makes the trackers of Trainer continue the runs of `folder`."""
    for kind, own in (
        (TensorBoardCallback, TensorBoardLog),
        (WandbCallback, WandbLog),
        (TrackioCallback, TrackioLog),
    ):
        if trainer.pop_callback(kind) is not None:
            trainer.add_callback(own(folder))


class ImageTrainer(Trainer):
    """
    A Trainer whose training images are uint8 until they are on the device.

    Args:
        frozen: modules whose BatchNorm keeps its statistics.
        augment: takes images, uint8 (B, 3, H, W), and labels, int64 (B,), of a training batch on the device; returns
            the images as the model takes them, and labels or their probabilities (B, classes).
    """

    def __init__(
        self,
        *args,
        frozen: list[nn.Module],
        augment: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.frozen, self.augment = frozen, augment

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        images, labels, smoothing = inputs["pixel_values"], inputs["labels"], 0.0
        if model.training:
            for module in self.frozen:  # Trainer calls model.train() before every step
                module.eval()
            images, labels = self.augment(images, labels)
            smoothing = self.args.label_smoothing_factor
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(outputs.logits.float(), labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, *args, **kwargs):
        # Only the training leaves out a last batch of one image.
        self.args.dataloader_drop_last, drop_last = False, self.args.dataloader_drop_last
        loader = super().get_eval_dataloader(*args, **kwargs)
        self.args.dataloader_drop_last = drop_last
        return loader

    def evaluate(self, *args, **kwargs):
        # Each process has the BatchNorm statistics of its own batches. All evaluate with those of the main process,
        # because those are saved.
        broadcast(list(self.model.buffers()))  # type: ignore[union-attr]
        return super().evaluate(*args, **kwargs)


def check_checkpoints(folder: Path, limit: int | None) -> None:
    """Raises SystemExit if other folders are named like checkpoints. Trainer keeps `limit` of all folders named
    checkpoint-..., and deletes the others with their contents."""
    other = [str(path) for path in sorted(folder.glob("checkpoint-*")) if path.is_dir() and not is_checkpoint(path)]
    if other and limit is not None:
        raise SystemExit(
            f"error: {', '.join(other)}: Trainer would delete each as an old checkpoint. Use a name that does not begin "
            "with checkpoint-"
        )


def is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def newest_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: one with a valid state, which Trainer writes last."""
    paths = sorted(filter(is_checkpoint, folder.glob("checkpoint-*")), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(paths):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    return None
