"""Checkpoints that are complete or not there: written to a temporary folder, with check sums, and then renamed."""

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
    Saves everything that was prepared and registered as `folder`/step_...; the newest `limit` checkpoints stay.

    Of older checkpoints, the files that `save_checkpoint` wrote are removed. Folders of other names, such as copies of
    a checkpoint, and files that somebody put into a checkpoint stay.
    """
    temporary, final = folder / TEMPORARY, folder / f"step_{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / CHECK_SUMS).write_text(json.dumps(check_sums(temporary)))
        written = {CHECK_SUMS, *check_sums(temporary)}
        if final.exists():  # a damaged one that was skipped, or that of the same step within the epoch
            previous = folder / f"{final.name}.old"  # still a checkpoint: there is one at any moment
            if previous.exists():
                _remove(previous, written)
            while previous.exists():  # somebody has put a file of their own into it
                previous = folder / f"{previous.name}.old"
            final.rename(previous)
        temporary.rename(final)
        found = checkpoints(folder)
        current = found.index(final)
        # What comes after it was replaced just now, or is damaged: this run went on from before it.
        for old in found[: max(current + 1 - limit, 0)] + found[current + 1 :]:
            _remove(old, written)
    accelerator.wait_for_everyone()


def _remove(checkpoint: Path, written: set[str]) -> None:
    """Removes what was written into a checkpoint, and the folders that are empty then."""
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
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECK_SUMS]
    return {str(path.relative_to(folder)): zlib.crc32(path.read_bytes()) for path in sorted(files)}


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    try:
        expected, found = json.loads((checkpoint / CHECK_SUMS).read_text()), check_sums(checkpoint)
    except (OSError, ValueError) as error:
        return f"its check sums cannot be read ({error})"
    wrong = [name for name, value in expected.items() if found.get(name) != value]
    return f"{', '.join(wrong)} missing or changed" if wrong else None


def load_newest(accelerator: Accelerator, folder: Path) -> Path | None:
    """Loads the newest checkpoint that is complete, and says which one; warns of those that are not.

    Raises:
        FileNotFoundError: the main process has a checkpoint that this one has not.
    """
    choice = [None]
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
        raise FileNotFoundError(f"{newest} is on another machine only: --output_dir must be a folder that all share")
    accelerator.load_state(str(newest))
    return newest
