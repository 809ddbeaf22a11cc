"""Checkpoints that are either complete or absent: written to a temporary folder with checksums, and then renamed."""

import json
import re
import shutil
import zlib
from pathlib import Path

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list


CHECK_SUMS = "check_sums.json"
TEMPORARY = ".new"
logger = get_logger(__name__)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, limit: int) -> None:
    """
    Saves everything that is prepared and registered as `folder`/step_..., and keeps the newest `limit` checkpoints.

    It removes only files that `save_checkpoint` wrote to older checkpoints. Folders with other names, such as copies of
    a checkpoint, and other files in a checkpoint remain.
    """
    temporary, final = folder / TEMPORARY, folder / f"step_{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        sums = check_sums(temporary)
        (temporary / CHECK_SUMS).write_text(json.dumps(sums))
        written = {CHECK_SUMS, *sums}
        if final.exists():  # a damaged checkpoint that was skipped, or one of the same step within the epoch
            previous = folder / f"{final.name}.old"  # remains a checkpoint until the new one is in place
            if previous.exists():
                _remove(previous, written)
            while previous.exists():  # it has files that were not written here
                previous = folder / f"{previous.name}.old"
            final.rename(previous)
        temporary.rename(final)
        saved = checkpoints(folder)
        current = saved.index(final)
        # Later checkpoints are the one that was just replaced, or damaged: this run resumed from an earlier one.
        for old in saved[: max(current + 1 - limit, 0)] + saved[current + 1 :]:
            _remove(old, written)
    accelerator.wait_for_everyone()


def _remove(checkpoint: Path, written: set[str]) -> None:
    """Removes the files that were written into a checkpoint, and then the empty folders."""
    try:
        written = written | json.loads((checkpoint / CHECK_SUMS).read_text()).keys()
    except (OSError, ValueError):  # damaged: the names are those of the other checkpoints
        pass
    for name in written:
        (checkpoint / name).unlink(missing_ok=True)
    for folder in sorted([checkpoint, *(path for path in checkpoint.rglob("*") if path.is_dir())], reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8}(\.old)*", path.name))


def check_sums(folder: Path) -> dict[str, int]:
    """CRC-32 of each file, by its path in the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECK_SUMS]
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in sorted(files)}


def damage(checkpoint: Path) -> str | None:
    """Describes the damage of a checkpoint; None if it is complete."""
    try:
        expected, actual = json.loads((checkpoint / CHECK_SUMS).read_text()), check_sums(checkpoint)
    except (OSError, ValueError) as error:
        return f"its checksums cannot be read ({error})"
    wrong = [name for name, value in expected.items() if actual.get(name) != value]
    return f"{', '.join(wrong)} missing or changed" if wrong else None


def load_newest(accelerator: Accelerator, folder: Path) -> Path | None:
    """Loads the newest complete checkpoint and returns its path. Warns of damaged ones.

    Raises:
        FileNotFoundError: this process does not see the checkpoint of the main process.
    """
    choice: list[str | None] = [None]
    if accelerator.is_main_process:
        for checkpoint in reversed(checkpoints(folder)):
            if problem := damage(checkpoint):
                logger.warning(f"{checkpoint} is damaged and skipped: {problem}")
            else:
                choice = [str(checkpoint)]
                break
    broadcast_object_list(choice)
    if choice[0] is None:
        return None
    newest = Path(choice[0])
    if not newest.is_dir():
        raise FileNotFoundError(
            f"{newest} exists only on another machine: --output_dir must be a folder that all machines share"
        )
    accelerator.load_state(str(newest))
    return newest
