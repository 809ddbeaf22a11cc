"""Writes files atomically, to a temporary path that is then renamed, and locks folders."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


try:
    import fcntl
except ImportError:  # on Windows, which has no locks of folders
    fcntl = None  # type: ignore[assignment]

_locks: set[int] = set()  # descriptors of the folders that this process has locked


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with `text` in UTF-8. Readers see the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates `folder`, and keeps other processes from locking it until the block or this process ends.

    Raises:
        BlockingIOError: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process writes to {folder}: wait until it has ended, or choose another folder"
            ) from None
        except OSError:  # some network disks have no locks of folders
            pass
        _locks.add(descriptor)
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _release_locks() -> None:
    """In a loader's worker, which may outlive its process for some seconds. It would keep the locks of that."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_release_locks)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values` as indented JSON; see `to_json`."""
    write_text(path, to_json(values, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one line for each row under a header, which has the keys of the first row.

    Raises:
        ValueError: a row has a key that the first row lacks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def to_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON with null for infinity and NaN, which it cannot express (a step that fp16 skips has an infinite gradient
    norm)."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
