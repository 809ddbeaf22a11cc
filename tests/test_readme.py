"""Every number in the tables of README and GUIDE is that of a committed record, or of the model itself."""

import csv
import json
import re

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification, count_macs, count_parameters
from rednet.hub.cards import known_checkpoints


RECORDS = ["network-cpu-2-cores-avx512-2026-11-23", "network-cpu-2-cores-avx512-2026-11-23-second-run"]
# The README's words for what the records name.
ROWS = {
    "inference, eager": "inference, eager",
    "BatchNorm folded by `model.fuse()`": "inference, folded",
    "`torch.compile` with freezing, best of each": "inference, best of each",
    "inference, eager, bfloat16": "inference, eager, bfloat16",
    "training step, eager": "training step, eager",
    "peak memory, inference": "peak memory, inference",
    "peak memory, training step": "peak memory, training step",
}
UNFOLD = {**ROWS, "`torch.compile` with freezing, best of each": "inference, both compiled with freezing"}


@pytest.fixture(scope="module")
def readme(root) -> list[list[str]]:
    """The rows of all tables, as lists of cells."""
    lines = (root / "README.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.fixture(scope="module")
def records(root) -> list[list[dict]]:
    return [list(csv.DictReader(open(root / f"benchmarks/results/{name}.csv"))) for name in RECORDS]


def found(record: list[dict], what: str, batch: str, unfold: bool) -> dict:
    (row,) = [
        row
        for row in record
        if (row["what"], row["batch"], row["peer"] == "RedNet-50 by unfold") == (what, batch, unfold)
    ]
    return row


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.?\d*", text)


@pytest.mark.parametrize("name", ROWS)
def test_speed(readme, records, name):
    rows = [cells for cells in readme if cells[0] == name]
    assert rows
    for _, batch, speed, beside_resnet, goal, *beside_unfold in rows:
        measured = [found(record, ROWS[name], batch, unfold=False) for record in records]
        ratios = [numbers(row["beside the peer"])[0] for row in measured]
        if "memory" in name:
            assert set(ratios) == set(numbers(beside_resnet))
        else:
            assert numbers(speed) == [numbers(row["RedNet-50"])[0] for row in measured]
            assert numbers(beside_resnet) == ratios
        met = {row["goal"].split(", ")[-1] for row in measured}
        assert goal.split(", ")[-1] == (met.pop() if len(met) == 1 else "met once")
        assert numbers(goal)[0] == numbers(measured[0]["goal"])[0]
        if beside_unfold and beside_unfold[0]:
            rows = [found(record, UNFOLD[name], batch, unfold=True) for record in records]
            ratios = [float(*numbers(row["beside the peer"])) for row in rows]
            assert numbers(beside_unfold[0]) == [f"{ratio:.1f}" for ratio in ratios]


@pytest.mark.parametrize("name", ["RedNet-26", "RedNet-38", "RedNet-50", "RedNet-101", "RedNet-152"])
def test_models(readme, root, name):
    ((_, parameters, macs, top_1),) = [cells for cells in readme if cells[0] == name]
    config = json.loads((root / f"configs/models/{name.lower()}.json").read_text())
    with torch.device("meta"):
        model = RedNetForImageClassification(RedNetConfig(**config))
    assert parameters == f"{count_parameters(model):,}" and macs == f"{count_macs(model) / 1e9:.3f} G"
    assert float(top_1) == known_checkpoints()[name.lower()]["released"]["authors"]["top_1"]


def test_exports(root):
    with open(root / "benchmarks/results/export-cpu-2-cores-avx512-2026-11-23.csv") as file:
        record = {(row["in"], row["batch"]): row for row in csv.DictReader(file) if row["model"] == "RedNet-50"}
    lines = [line for line in (root / "GUIDE.md").read_text().splitlines() if line.startswith("| ")]
    for name in ("PyTorch, eager", "AOTInductor", "onnxruntime", "OpenVINO"):
        (cells,) = [cells for line in lines if (cells := [c.strip() for c in line.strip("|").split("|")])[0] == name]
        rows = [record[name, batch] for batch in ("1", "16")]
        for cell, row in zip(cells[1:], rows):
            assert numbers(cell) == [row["images/s"], *numbers(row["beside it in PyTorch, eager"])]
        assert numbers(cells[3]) == [n for row in rows for n in numbers(row["beside ResNet-50 in the same"])]


def words(path) -> str:
    return " ".join(path.read_text().split())


def test_demo(root):
    results = json.loads((root / "benchmarks/results/fashion_mnist_demo/results.json").read_text())
    accuracy, seconds = 100 * results["eval_accuracy"], results["train_seconds"]
    reached = f"{accuracy:.2f} % top-1 on Fashion-MNIST in {results['epochs']} epochs and {seconds:.0f} s"
    assert reached in words(root / "README.md")


def test_hours_of_imagenet(root, records):
    """130 epochs on a CPU, to a hundred hours."""
    speeds = sorted(
        float(*numbers(found(r, "training step, eager", "16", unfold=False)["RedNet-50"])) for r in records
    )
    hours = [round(1_281_167 * 130 / 3600 / speed, -2) for speed in reversed(speeds)]
    row = f"{speeds[0]} to {speeds[-1]} (README, 2026-11-23) | {hours[0]:,.0f} to {hours[-1]:,.0f} hours"
    assert row in words(root / "TRAINING.md")


def test_workers(root):
    with open(root / "benchmarks/results/data-cpu-1-core-2026-11-23.csv") as file:
        small, large, street, stream = csv.DictReader(file)
    text = words(root / "TRAINING.md")
    assert f"500 x 375 JPEG took {small['ms']} ms of one core ({small['images/s']} images/s)" in text
    beside = numbers(large["beside RandomResizedCrop"])[0]
    assert f"1600 x 1200 one {large['ms']} ms, {beside} times as fast" in text
    assert f"streamed image took {stream['ms']} ms" in text
    assert f"PNG took {float(street['ms']):.0f} ms of one core: {street['images/s']} crops/s" in text
