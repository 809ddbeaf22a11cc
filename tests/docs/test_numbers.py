"""Every number in the tables of the pages is that of a committed record, or of the model itself."""

import csv
import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification, count_macs, count_parameters
from rednet.hub.cards import known_checkpoints


ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


def record(kind: str) -> str:
    (path,) = [path for path in RESULTS.glob(f"{kind}-cpu-*.csv") if "other-shapes" not in path.name]
    return path.stem


NETWORK, PLAIN_PYTORCH, OPERATOR, LIBRARY, EXPORTS, DATA = (
    record(kind) for kind in ("network", "plain", "operator", "library", "export", "data")
)
LIBRARY_COLUMNS = ("forward", "contiguous", "fused", "input grad", "kernel grad", "fused grad")
# The words of the pages for what the records name.
FIRST_PAGE = {
    "inference, eager, float32": "inference, eager",
    "inference, BatchNorm folded by `model.fuse()`, float32": "inference, folded",
    "inference, `torch.compile` with freezing, float32": "inference, compiled with freezing",
    "inference, eager, bfloat16": "inference, eager, bfloat16",
    "training step, eager, float32": "training step, eager",
}
BENCHMARKS = {
    "inference, eager": "inference, eager",
    "inference, folded (`model.fuse()`)": "inference, folded",
    "inference, compiled with freezing": "inference, compiled with freezing",
    "inference, eager, bfloat16": "inference, eager, bfloat16",
    "training step, eager": "training step, eager",
    "peak memory, inference": "peak memory, inference",
    "peak memory, training step": "peak memory, training step",
}
PLAIN = {
    name: name
    for name in [f"{what}, {mode}" for what in ("inference", "training step") for mode in ("eager", "compiled")]
}
UNFOLD = {**BENCHMARKS, "inference, compiled with freezing": "inference, both compiled with freezing"}


def read_table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (ROOT / page).read_text().split(f"\n## {heading}\n")[1]
    table = re.search(r"(^\|.*\n)+", text, re.MULTILINE)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def read_csv(name: str) -> list[dict]:
    with open(RESULTS / f"{name}.csv") as file:
        return list(csv.DictReader(file))


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.?\d*", text)


def measured(what: str, batch: str, unfold: bool = False, record: str = NETWORK) -> dict:
    (row,) = [
        row
        for row in read_csv(record)
        if (row["what"], row["batch"], row["peer"] == "RedNet-50 by unfold") == (what, batch, unfold)
    ]
    return row


def ending(row: dict, words: str) -> str:
    """The value of the column whose name ends so."""
    (name,) = [name for name in row if name.endswith(words)]
    return row[name]


def ratio(row: dict) -> str:
    return numbers(row.get("against the peer") or row["beside the peer"])[0]


def test_speed_on_the_first_page():
    eager, compiled = (
        [ratio(measured(f"inference, {mode}", batch, record=PLAIN_PYTORCH)) for batch in "18"]
        for mode in ("eager", "compiled")
    )
    plain = f"{eager[0]} x and {eager[1]} x in eager mode, and under `torch.compile`: {compiled[0]} x (batch 1), "
    assert f"{plain}{compiled[1]} x (batch 8)." in words("README.md")
    rows = read_table("README.md", "Speed")
    assert [cells[0] for cells in rows] == list(FIRST_PAGE)
    for name, *batches in rows:
        for batch, cell in zip(("1", "16"), batches, strict=True):
            if cell != "not measured":
                assert numbers(cell) == [ratio(measured(FIRST_PAGE[name], batch))], name


def test_bfloat16_without_instructions_for_it():
    slow, fast = (numbers(measured(f"inference, eager{dtype}", "16")["RedNet-50"])[0] for dtype in (", bfloat16", ""))
    assert f"RedNet-50 reaches {slow} instead of {fast} images/s" in words("docs/use.md")


@pytest.mark.parametrize(
    ("heading", "record", "names", "unfold"),
    [
        ("RedNet-50 relative to ResNet-50", NETWORK, BENCHMARKS, UNFOLD),
        ("RedNet-50 in plain PyTorch", PLAIN_PYTORCH, PLAIN, PLAIN),
    ],
)
def test_speed_and_memory(heading, record, names, unfold):
    rows = read_table("benchmarks/README.md", heading)
    assert {cells[0] for cells in rows} == names.keys()
    for name, batch, speed, relative, relative_to_unfold in rows:
        row = measured(names[name], batch, record=record)
        assert numbers(relative) == [ratio(row)]
        if "memory" not in name:
            assert numbers(speed) == [numbers(row["RedNet-50"])[0]]
        if relative_to_unfold:
            exact = float(ratio(measured(unfold[name], batch, True, record)))
            assert numbers(relative_to_unfold) == [f"{exact:.1f}"]


@pytest.mark.parametrize("name", ["RedNet-26", "RedNet-38", "RedNet-50", "RedNet-101", "RedNet-152"])
def test_models(name):
    rows = {cells[0]: cells[1:] for cells in read_table("benchmarks/README.md", "The family")}
    config = json.loads((ROOT / f"configs/models/{name.lower()}.json").read_text())
    with torch.device("meta"):
        model = RedNetForImageClassification(RedNetConfig(**config))
    top_1 = known_checkpoints()[name.lower()]["released"]["authors"]["top_1"]
    assert rows[name] == [f"{count_parameters(model):,}", f"{count_macs(model) / 1e9:.3f} G", f"{top_1:.2f}"]
    depths = {
        cells[0].removesuffix(" (the default)"): cells[1] for cells in read_table("docs/use.md", "Build a RedNet")
    }
    assert depths[name] == ", ".join(map(str, config["depths"]))


def test_exports():
    """A row for each way to run RedNet-50: the runtime, and what involution is in its file."""
    ours = [row for row in read_csv(EXPORTS) if row["model"] == "RedNet-50"]
    record = {(", ".join(filter(None, (row["in"], row.get("involution")))), row["batch"]): row for row in ours}
    rows = read_table("benchmarks/README.md", "Exported models")
    assert {cells[0] for cells in rows} == {name for name, _ in record} - {"PyTorch, `fuse()`"}
    for name, *batches, relative in rows:
        of_name = [record[name, batch] for batch in ("1", "16")]
        for cell, row in zip(batches, of_name, strict=True):
            assert numbers(cell) == [row["images/s"], *numbers(ending(row, "PyTorch, eager"))]
        assert numbers(relative) == [n for row in of_name for n in numbers(ending(row, "ResNet-50 in the same"))]


def test_exports_relative_to_resnet():
    record = {(row["in"], row["involution"], row["batch"]): row for row in read_csv(EXPORTS)}
    for runtime_and_batch, *cells in read_table("docs/export.md", "One node for each involution"):
        runtime, batch = runtime_and_batch.split(", batch ")
        for cell, involution in zip(cells, ("standard nodes", "custom node", "one multiplication"), strict=True):
            assert numbers(cell) == numbers(ending(record[runtime, involution, batch], "ResNet-50 in the same"))


def test_library_in_the_wheel():
    record = {(r["dtype"], r["batch"]): r for r in read_csv(LIBRARY) if r["input"] == "all seventeen"}
    rows = read_table("benchmarks/README.md", "The library in the wheel")
    assert len(rows) == len(record)
    for dtype, batch, *cells in rows:
        measured = [record[dtype, batch][name] for name in LIBRARY_COLUMNS]
        assert cells == [f"{ratio} x" for ratio in measured]


def test_operator():
    rows = [row for row in read_csv(OPERATOR) if row["dtype"] == "float32"]
    faster = [row["forward: faster than unfold"] for row in rows]
    slowest, fastest = (choose(faster, key=float) for choose in (min, max))
    assert f"batch 16, the forward pass is {slowest} to {fastest} times as fast as unfold" in words("docs/operator.md")
    assert sum(int(row["in RedNet-50"]) for row in rows) == 17 and all(row["input"].startswith("16 x") for row in rows)


def words(page: str) -> str:
    return " ".join((ROOT / page).read_text().split())


def test_demo():
    results = json.loads((RESULTS / "fashion_mnist_demo/results.json").read_text())
    accuracy, seconds = 100 * results["eval_accuracy"], results["train_seconds"]
    reached = f"{accuracy:.2f} % top-1 on Fashion-MNIST in {results['epochs']} epochs and {seconds:.0f} s"
    assert reached in words("benchmarks/README.md")
    assert f"reached {accuracy:.2f} % top-1 after {seconds:.0f} s of training" in words("README.md")


def test_hours_of_imagenet():
    """130 epochs on a CPU, to a hundred hours."""
    record = measured("training step, eager", "16")
    speed, date = float(numbers(record["RedNet-50"])[0]), record["conditions"].split(",")[0]
    hours = round(1_281_167 * 130 / 3600 / speed, -2)
    assert f"{speed} ({date}) | {hours:,.0f} hours" in words("docs/train.md")


def test_data():
    stages = {(row["picture"], row["what one core does"]): row for row in read_csv(DATA)}
    for picture, what, *cells in read_table("benchmarks/README.md", "Training data"):
        assert cells == [stages[picture, what]["ms"], stages[picture, what]["images/s"]]
    names = ("JPEG of 500 x 375", "JPEG of 1600 x 1200", "packed, 667 x 500", "packed, 341 x 256")
    small, large, *packed = (stages[name, "read, decode, crop, flip, collate"] for name in names)
    ratios = [numbers(ending(row, "RandomResizedCrop"))[0] for row in (large, small)]
    assert (
        f"takes {ratios[0]} times as long for the JPEGs of 1600 x 1200, and {ratios[1]} times as long for those of "
        "500 x 375"
    ) in words("benchmarks/README.md")
    crops = f"crops {small['images/s']} JPEGs of 500 x 375 per second"
    assert f"and {crops} ([data]" in words("docs/train.md")
    crops += f", or {large['images/s']} of 1600 x 1200. Packed with 500 pixels, the large ones are "
    crops += f"{packed[0]['images/s']} per second, with 256 pixels {packed[1]['images/s']}"
    assert crops in words("docs/data.md")
    street = stages["PNG of 2048 x 1024 with mask", "read, decode, crop to 1024 x 512"]
    assert f"makes {street['images/s']} crops/s of a 2048 x 1024 PNG" in words("docs/dense.md")


def test_published_models():
    """The parameters and operations are counted, the accuracies are those in the cards' data."""
    rows = {cells[0].strip("`"): cells[1:] for cells in read_table("docs/weights.md", "The published models")}
    assert rows.keys() == known_checkpoints().keys()
    for name, data in known_checkpoints().items():
        with torch.device("meta"):
            model = RedNetForImageClassification(RedNetConfig(depths=data["depths"], num_labels=1000))
        released = data["released"]["paddleclas"]
        assert rows[name] == [
            f"{count_parameters(model) / 1e6:.2f} M",
            f"{count_macs(model, 224, 224) / 1e9:.3f} G",
            f"{released['top_1']:.2f} %",
            f"{released['top_5']:.2f} %",
        ]
    top_1 = known_checkpoints()["rednet-50"]["released"]["paddleclas"]["top_1"]
    assert f"RedNet-50 with {top_1} % top-1" in words("README.md")


def test_divergence():
    """Losses, and steps of NaN, of all seeds of a protection and a learning rate."""
    runs = [run for run in read_csv("divergence-fashion-mnist-2026-11-30") if run["operator_type"] == "involution"]
    table = read_table("docs/train.md", "Divergence")
    assert len(table) == len({run["protection"] for run in runs})
    for protection, *cells in table:
        for rate, cell in zip(("1", "10", "100"), cells, strict=True):
            found = [run for run in runs if (run["protection"], run["learning_rate"]) == (protection, rate)]
            losses, steps = ([run[name] for run in found if run[name]] for name in ("loss", "nan_at_step"))
            assert numbers(cell) == losses + steps and ("NaN" in cell) == bool(steps)


def test_pairs_of_equal_cost():
    """Mean, standard error and difference of each pair, from the runs."""
    pairs = {
        ("Fashion-MNIST", "depth"): ("fashion_mnist_models", "base", "ResNet"),
        ("Fashion-MNIST", "parameters, operations"): ("fashion_mnist_models", "RedNet-1-2-2", "ResNet"),
        ("Fashion-MNIST, AdamW", "depth"): ("fashion_mnist_models_adamw", "base", "ResNet"),
        ("Fashion-MNIST, AdamW", "parameters, operations"): ("fashion_mnist_models_adamw", "RedNet-1-2-2", "ResNet"),
        ("Open Clip Art", "depth"): ("open_clip_art_models", "base", "ResNet"),
        ("Open Clip Art", "parameters, operations"): ("open_clip_art_models", "base", "ResNet-1-1-1"),
        ("Open Clip Art, AdamW", "depth"): ("open_clip_art_models_adamw", "base", "ResNet"),
        ("Open Clip Art, AdamW", "parameters, operations"): ("open_clip_art_models_adamw", "base", "ResNet-1-1-1"),
    }
    rows = read_table("docs/evidence.md", "Trained here")
    assert [(data, equal) for data, equal, *_ in rows] == list(pairs)
    for data, equal, *cells, difference in rows:
        study, *models = pairs[data, equal]
        means, errors = [], []
        for model, cell in zip(models, cells, strict=True):
            runs = [run for run in read_csv(f"{study}/runs") if (run["value"] or run["axis"]) == model]
            accuracies = [100 * float(run["top_1"]) for run in runs]
            assert len(accuracies) == 3
            means.append(statistics.mean(accuracies))
            errors.append(statistics.stdev(accuracies) / 3**0.5)
            assert cell == f"{means[-1]:.2f} ± {errors[-1]:.2f}"
        expected = f"{means[0] - means[1]:+.2f} ± {math.hypot(*errors):.2f}"
        assert difference == (f"**{expected}**" if abs(means[0] - means[1]) > 2 * math.hypot(*errors) else expected)


def test_exported_demo():
    top_1 = {
        (row["runtime"], Path(row["exported_file"]).stem): f"{100 * float(row['eval_accuracy']):.2f} %"
        for row in read_csv("fashion_mnist_demo/exported")
    }
    text = (ROOT / "docs/export.md").read_text().split("\nTop-1 of the model of the demo")[1]
    assert f"PyTorch has {top_1['pytorch', '']}" in text
    cells = re.findall(r"^\| (\w+), (\w+) nodes \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert [cell[:2] for cell in cells] == [(t, n) for t in ("float16", "int8") for n in ("standard", "custom")]
    for dtype, nodes, *values in cells:
        assert values == [top_1[runtime, f"{dtype}-{nodes}"] for runtime in ("onnxruntime", "openvino")]
