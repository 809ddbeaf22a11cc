"""Writes files atomically: to a temporary path, which is then renamed."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with `text` in UTF-8. Readers see the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(path)


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
