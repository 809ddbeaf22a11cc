"""Folders that the workers of one test run share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared_folder(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]) -> Path:
    """A folder that is written once in a test run, by the first worker that needs it; the others wait for it.

    Tests must not change its files.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: of the folder, unique in a test run.
        write: fills the folder, which exists and is empty. After an error, the next worker tries again in another one.
    """
    base = factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / name  # of a worker of pytest-xdist, or of all
    complete = folder.with_name(f"{name}.complete")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not complete.exists():
            written = factory.mktemp(name)
            write(written)
            folder.symlink_to(written)
            complete.touch()
    return folder
