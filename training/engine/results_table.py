"""A CSV file with one row for each model and data set, to which several runs add."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from rednet.training.utils.files import write_csv


# What a row holds for: a second run with the same values would have the same results.
KEY = (
    *("model", "weights", "runtime", "exported_file", "dataset", "dataset_config_name", "split", "train_val_split"),
    *("real_labels", "labels_by_number", "max_eval_samples", "seed", "mixed_precision", "device"),
)
RESULTS = (
    *("eval_accuracy", "eval_top_5_accuracy", "eval_loss", "eval_calibration_error", "eval_samples", "classes"),
    *("parameters", "macs", "image_size", "latency_ms", "batch_size", "images_per_second", "peak_memory_bytes"),
    *("threads", "torch", "transformers", "date"),
)


def has_row(path: Path, values: Mapping[str, Any]) -> bool:
    """Whether the file has a row for the `KEY` of `values`."""
    return any(_same(row, values) for row in read_rows(path))


def add_row(path: Path, values: Mapping[str, Any]) -> None:
    """Adds a row with the columns `KEY` and `RESULTS` of `values`, or replaces the row of the same `KEY`.

    The file is replaced as a whole, under a lock: other runs may add rows at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = [row for row in read_rows(path) if not _same(row, values)]
        write_csv(path, [*rows, {name: _text(values.get(name)) for name in KEY + RESULTS}])


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the file; none if it does not exist.

    Raises:
        ValueError: it has other columns.
    """
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != KEY + RESULTS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {list(KEY + RESULTS)}")
        return list(reader)


def _same(row: Mapping[str, str], values: Mapping[str, Any]) -> bool:
    return all(row[name] == _text(values.get(name)) for name in KEY)


def _text(value: Any) -> str:
    """As a cell: nothing for None, and 224 x 224 for a size."""
    return " x ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
