"""What a study of ablate.py makes of its runs: times, means over the seeds, table and picture.

A run is a row with its `axis`, its `value` as it is shown and what train.py measured. The rows of the base have the
axis BASE and no value.
"""

import csv
import io
import statistics
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.training.figures.style import SLIDE, look
from rednet.training.utils.files import write_text
from tqdm.auto import tqdm


BASE = "base"


def shown(value: object) -> str:
    return "all" if value is None else str(value)


def write_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@torch.no_grad()
def inference_seconds(configs: dict[tuple, RedNetConfig], batch_size: int, image_size: int) -> dict[tuple, float]:
    """Median seconds of a batch for every model. They take turns, so that what slows the machine slows them all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    models = {
        key: RedNetForImageClassification(config).eval().to(device, memory_format=torch.channels_last)
        for key, config in configs.items()
    }
    times = {key: [] for key in models}
    for turn in tqdm(range(8), desc="time", unit="turn"):
        for key, model in models.items():
            start = time.perf_counter()
            model(images).logits.sum().item()  # waits for a GPU
            if turn > 0:  # the first one warms up
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def summarize(rows: list[dict], seconds: dict[tuple, float]) -> list[dict]:
    """Mean and standard deviation over the seeds, a row for each (axis, value) of `seconds` that has runs."""
    summary = []
    for (axis, value), inference in seconds.items():
        mine = [row for row in rows if (row["axis"], row["value"]) == (axis, value)]
        if not mine:
            continue
        accuracies = [row["top_1"] for row in mine]
        summary.append(
            {
                "axis": axis,
                "value": value,
                "runs": len(mine),
                "parameters": mine[0]["parameters"],
                "macs": mine[0]["macs"],
                "inference_ms": round(1000 * inference, 2),
                "top_1_mean": statistics.mean(accuracies),
                "top_1_std": statistics.stdev(accuracies) if len(mine) > 1 else 0.0,
            }
        )
    return summary


def with_base(summary: list[dict], base: RedNetConfig) -> dict[str, list[dict]]:
    """The rows of every axis, the base among them at its own value."""
    axes = {}
    for row in summary:
        if row["axis"] != BASE:
            axes.setdefault(row["axis"], []).append(row)
    for axis, rows in axes.items():
        rows += [{**row, "value": shown(getattr(base, axis))} for row in summary if row["axis"] == BASE]
        # Numbers in their order, and names after them.
        rows.sort(key=lambda row: (not row["value"].isdecimal(), int(row["value"]) if row["value"].isdecimal() else 0))
    return axes


def table(summary: list[dict], base: RedNetConfig) -> str:
    lines = ["| | parameters | MACs | inference | top-1 |", "|---|---|---|---|---|"]
    for axis, rows in with_base(summary, base).items():
        for row in rows:
            name = f"{axis} {row['value']}" + (" (base)" if row["axis"] == BASE else "")
            spread = f" ± {100 * row['top_1_std']:.2f}" if row["runs"] > 1 else ""
            lines.append(
                f"| {name} | {row['parameters']:,} | {row['macs'] / 1e6:.2f} M | {row['inference_ms']:.1f} ms | "
                f"{100 * row['top_1_mean']:.2f}{spread} |"
            )
    return "\n".join(lines) + "\n"


@look
def draw(summary: list[dict], base: RedNetConfig) -> Figure:
    """Accuracy and operations over each axis."""
    axes = with_base(summary, base)
    figure = Figure(figsize=SLIDE)
    panels = figure.subplots(
        2, len(axes), sharey="row", squeeze=False, width_ratios=[len(rows) + 1 for rows in axes.values()]
    )
    for (axis, rows), (accuracy, operations) in zip(axes.items(), panels.T):
        values = [row["value"] for row in rows]
        fills = ["black" if row["axis"] == BASE else "white" for row in rows]
        means, spreads = ([100 * row[name] for row in rows] for name in ("top_1_mean", "top_1_std"))
        accuracy.errorbar(values, means, spreads, fmt="none", ecolor="black", capsize=6)
        accuracy.scatter(values, means, 90, fills, edgecolors="black", linewidths=2, zorder=3, gid=f"{axis} top-1")
        operations.bar(values, [row["macs"] / 1e6 for row in rows], 0.6, color=fills, edgecolor="black")
        accuracy.set_title(axis.replace("_", " "))
        for panel in (accuracy, operations):
            panel.margins(x=0.2)
            panel.set_axisbelow(True)
            panel.tick_params("x", labelsize=12, rotation=20 if any(len(value) > 4 for value in values) else 0)
    panels[0, 0].set_ylabel("top-1 accuracy (%)")
    panels[1, 0].set_ylabel("multiply-accumulates (M)")
    figure.suptitle("Filled: the base. Lines: standard deviation over the seeds", fontsize=13)
    return figure
