"""Files that are complete or not there: written to a temporary path, then renamed."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, values: dict) -> None:
    write_text(path, to_json(values, indent=2) + "\n")


def to_json(values: dict, indent: int | None = None) -> str:
    """JSON has no infinity, which the norm of a gradient is after a skipped step of fp16, and no NaN: null for both."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
