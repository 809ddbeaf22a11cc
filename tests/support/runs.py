"""Compares the files of training runs."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def assert_same(one: Path, other: Path) -> None:
    """Weights, averages, statistics, log and results are the same; only speeds differ."""
    for name in ("last", "best"):
        weights, expected = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], value) for key, value in expected.items()), name
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, other)]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for entry in (*logs[0], *logs[1], *results):
        entry.pop("images_per_second", None)
        entry.pop("train_seconds", None)
    assert logs[0] == logs[1] and results[0] == results[1]
