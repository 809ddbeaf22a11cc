"""The results of a study of ablate.py: times of the models, means over the seeds, and the table.

A run is a row with its `axis`, its `value` as text, and the results of train.py. The runs of the base have the axis BASE
and no value, those of a model that differs in several options have the axis MODEL and the model's name.
"""

import math
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from rednet import RedNetConfig, RedNetForImageClassification

from involution.timing import median_seconds


BASE, MODEL = "base", "model"
REPEATS = 7
SIGNIFICANT = 2  # standard errors


def as_text(value: object) -> str:
    """A value of an axis. None, which for the channels of a group means all channels, is `all`."""
    return "all" if value is None else str(value)


def measure(
    configs: dict[tuple[str, str], RedNetConfig], batch_size: int, image_size: int
) -> dict[tuple[str, str], dict[str, float]]:
    """Median milliseconds of a batch for each architecture, with random weights: `inference_ms`, and `training_ms` of
    a step of SGD without reading and augmenting. The architectures take turns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    models = {
        key: RedNetForImageClassification(config).to(device, memory_format=torch.channels_last)
        for key, config in configs.items()
    }

    def train(model: RedNetForImageClassification, optimizer: torch.optim.Optimizer) -> None:
        F.cross_entropy(model.train()(images).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        inference = median_seconds(
            {key: lambda model=model: model.eval()(images) for key, model in models.items()}, REPEATS
        )
    optimizers = {key: torch.optim.SGD(model.parameters(), 1e-3, 0.9) for key, model in models.items()}
    training = median_seconds({key: lambda key=key: train(models[key], optimizers[key]) for key in models}, REPEATS)
    return {
        key: {"inference_ms": round(1000 * inference[key], 2), "training_ms": round(1000 * training[key], 2)}
        for key in models
    }


def summarize(rows: list[dict], times: dict[tuple[str, str], dict[str, float]]) -> list[dict]:
    """
    Means over the seeds and their standard errors: one row for each (axis, value) of `times` that has runs.

    `difference` is that of the mean to the base's, None for the base itself. Its standard error is the root of the sum
    of both squared errors. The errors are None if there is one run only.
    """
    summary: list[dict] = []
    base = None
    for (axis, value), milliseconds in times.items():
        runs = [row for row in rows if (row["axis"], row["value"]) == (axis, value)]
        if not runs:
            continue
        accuracies = [row["top_1"] for row in runs]
        row: dict[str, Any] = {"axis": axis, "value": value, "runs": len(runs)}
        row |= {"parameters": runs[0]["parameters"], "macs": runs[0]["macs"], **milliseconds}
        row |= {"top_1_mean": statistics.mean(accuracies)}
        row |= {"top_1_error": statistics.stdev(accuracies) / math.sqrt(len(runs)) if len(runs) > 1 else None}
        base = row if axis == BASE else base
        row |= {"difference": None, "difference_error": None}
        if base is not None and row is not base:
            row["difference"] = row["top_1_mean"] - base["top_1_mean"]
            if len(runs) > 1 and base["runs"] > 1:
                row["difference_error"] = math.hypot(row["top_1_error"], base["top_1_error"])
        summary.append(row)
    return summary


def percent(value: float, error: float | None, sign: str = "") -> str:
    """A value and its standard error, both in percent."""
    return f"{100 * value:{sign}.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def group_by_axis(summary: list[dict], base: RedNetConfig) -> dict[str, list[dict]]:
    """The rows of each axis. The base is one of them, with its own value and `is_base`."""
    axes: dict[str, list[dict]] = {}
    for row in summary:
        if row["axis"] != BASE:
            axes.setdefault(row["axis"], []).append({**row, "is_base": False})
    for axis, rows in axes.items():
        value = "base" if axis == MODEL else as_text(getattr(base, axis))
        rows[:0] = [{**row, "value": value, "is_base": True} for row in summary if row["axis"] == BASE]
        if axis != MODEL:  # numbers first, in their order
            rows.sort(
                key=lambda row: (not row["value"].isdecimal(), int(row["value"]) if row["value"].isdecimal() else 0)
            )
    return axes


def table(axes: dict[str, list[dict]]) -> str:
    """The rows of `group_by_axis` in Markdown."""
    lines = [
        "| | parameters | MACs | inference | training step | top-1 | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for axis, rows in axes.items():
        for row in rows:
            name = row["value"] if axis == MODEL else f"{axis} {row['value']}" + (" (base)" if row["is_base"] else "")
            difference, error = row["difference"], row["difference_error"]
            shown = "" if difference is None else percent(difference, error, "+")
            if error is not None and abs(difference) > SIGNIFICANT * error:
                shown = f"**{shown}**"
            lines.append(
                f"| {name} | {row['parameters']:,} | {row['macs'] / 1e6:.2f} M | {row['inference_ms']:.1f} ms | "
                f"{row['training_ms']:.1f} ms | {percent(row['top_1_mean'], row['top_1_error'])} | {shown} |"
            )
    return "\n".join(lines) + "\n"
