"""The files that a run writes next to its checkpoints and models: options.json, log.jsonl, results.json."""

import json
from pathlib import Path

from rednet.hub import check_replaceable
from rednet.training.utils.files import to_json, write_text


# A resumed run may change these options: it ends with the same weights.
RESUMABLE_OPTIONS = {"output_dir", "dataloader_num_workers", "per_device_eval_batch_size", "checkpointing_steps"}
RESUMABLE_OPTIONS |= {"checkpoints_total_limit", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo"}
RESUMABLE_OPTIONS |= {"hub_revision", "hub_create_pr"}
RESUMABLE_OPTIONS |= {"disable_tqdm", "log_level", "log_level_replica"}


def check_options(output_dir: str, options: dict) -> None:
    """
    Checks before anything is computed that the run can write to `output_dir`.

    Raises:
        SystemExit: the folder belongs to a run with other options, or has files where the models will be saved.
    """
    try:
        for name in ("best", "last"):
            check_replaceable(Path(output_dir, name))
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    path = Path(output_dir) / "options.json"
    if path.exists():
        previous = json.loads(path.read_text())
        changed = [
            name
            for name in {**options, **previous}
            if options.get(name) != previous.get(name) and name not in RESUMABLE_OPTIONS
        ]
        if changed:
            differences = ", ".join(f"{name} {previous.get(name)!r} -> {options.get(name)!r}" for name in changed)
            raise SystemExit(
                f"error: {output_dir} belongs to a run with other options ({differences}). Choose another --output_dir, "
                "or remove the folder"
            )


def append_log(path: Path, values: dict) -> None:
    with open(path, "a") as file:
        file.write(to_json(values) + "\n")


def truncate_log(path: Path, lines: int) -> None:
    """Keeps the first `lines` lines. A resumed run logs again what came after its checkpoint."""
    if path.exists():
        write_text(path, "".join(path.read_text().splitlines(True)[:lines]))
