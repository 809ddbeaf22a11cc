"""The files of a run beside its checkpoints and models: options.json, log.jsonl, results.json."""

import json
from pathlib import Path

from rednet.hub import check_replaceable
from rednet.training.utils.files import to_json, write_text


# With these changed, a run still ends with the same weights.
FREE = {"output_dir", "dataloader_num_workers", "per_device_eval_batch_size", "checkpointing_steps"}
FREE |= {"checkpoints_total_limit", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo"}


def check_options(output_dir: str, options: dict) -> None:
    """
    Refuses, before anything is computed, an `output_dir` that belongs to a run with other options, or in which the
    models of the run cannot be saved at its end.
    """
    try:
        for name in ("best", "last"):
            check_replaceable(Path(output_dir, name))
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    path = Path(output_dir) / "options.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            name for name in {**options, **before} if options.get(name) != before.get(name) and name not in FREE
        ]
        if changed:
            differences = ", ".join(f"{name} {before.get(name)!r} -> {options.get(name)!r}" for name in changed)
            raise SystemExit(
                f"error: {output_dir} holds a run with other options ({differences}). Give another --output_dir, or remove it"
            )


def append_log(path: Path, values: dict) -> None:
    with open(path, "a") as file:
        file.write(to_json(values) + "\n")


def shorten_log(path: Path, lines: int) -> None:
    """What an interrupted run logged after its last checkpoint will be logged again."""
    if path.exists():
        write_text(path, "".join(path.read_text().splitlines(True)[:lines]))
