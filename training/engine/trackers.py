"""Experiment trackers of a run that was interrupted: it continues its own runs of W&B, Trackio and TensorBoard."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rednet.training.utils.files import write_text


PROJECT = "rednet"


def run_id(folder: Path) -> str:
    """The id by which trackers know the run, from the file `run_id` in its folder, which is created if it is missing.

    WANDB_RUN_ID takes precedence in W&B.
    """
    path = folder / "run_id"
    if not path.exists():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def wandb_options(folder: Path) -> dict[str, Any]:
    """Arguments of `wandb.init`. "allow", because W&B may not have heard of a run that was killed early."""
    return {"id": os.environ.get("WANDB_RUN_ID") or run_id(folder), "resume": "allow"}


def start_trackers(accelerator: Accelerator, folder: Path, options: dict[str, Any], step: int) -> None:
    """
    Starts the trackers of Accelerate, or continues their runs.

    TensorBoard hides what it has of `step` and of later steps. The lines of log.jsonl that belong to `step` are logged
    again, because only a part of them may precede the checkpoint.

    Args:
        folder: of the run; its log.jsonl ends at the checkpoint.
        options: for trackers that show the options of a run.
        step: of the checkpoint that the run resumes from, or 0.
    """
    if not accelerator.log_with:
        return
    first = not (folder / "runs" / PROJECT).is_dir()
    arguments: dict[str, dict[str, Any]] = {}
    if accelerator.is_main_process:
        arguments["wandb"] = wandb_options(folder)
        arguments["trackio"] = {"name": run_id(folder), "resume": "allow"}
        arguments["tensorboard"] = {"purge_step": step}
    accelerator.init_trackers(PROJECT, init_kwargs=arguments)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":
            tracker.store_init_configuration(options)
            continue
        if first:  # a second time, it would show two runs
            tracker.store_init_configuration(options)
        path = folder / "log.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            values = json.loads(line)
            if values.pop("step") == step:
                tracker.log(values, step)
