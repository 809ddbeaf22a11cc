"""The results of a study of ablate.py: inference times, means over the seeds, and the table.

A run is a row with its `axis`, its `value` as text, and the results of train.py. The runs of the base have the axis BASE
and no value.
"""

import statistics

import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.profile import median_seconds


BASE = "base"
REPEATS = 7


def as_text(value: object) -> str:
    """A value of an axis. None, which for the channels of a group means all channels, is `all`."""
    return "all" if value is None else str(value)


@torch.no_grad()
def inference_seconds(
    configs: dict[tuple[str, str], RedNetConfig], batch_size: int, image_size: int
) -> dict[tuple[str, str], float]:
    """Median seconds of a batch for each architecture, with random weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    models = {
        key: RedNetForImageClassification(config).eval().to(device, memory_format=torch.channels_last)
        for key, config in configs.items()
    }
    return median_seconds({key: lambda model=model: model(images) for key, model in models.items()}, REPEATS)


def summarize(rows: list[dict], seconds: dict[tuple[str, str], float]) -> list[dict]:
    """Mean and standard deviation over the seeds: one row for each (axis, value) of `seconds` that has runs."""
    summary = []
    for (axis, value), inference in seconds.items():
        runs = [row for row in rows if (row["axis"], row["value"]) == (axis, value)]
        if not runs:
            continue
        accuracies = [row["top_1"] for row in runs]
        summary.append(
            {
                "axis": axis,
                "value": value,
                "runs": len(runs),
                "parameters": runs[0]["parameters"],
                "macs": runs[0]["macs"],
                "inference_ms": round(1000 * inference, 2),
                "top_1_mean": statistics.mean(accuracies),
                "top_1_std": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
            }
        )
    return summary


def group_by_axis(summary: list[dict], base: RedNetConfig) -> dict[str, list[dict]]:
    """The rows of each axis. The base is one of them, with its own value and `is_base`."""
    axes: dict[str, list[dict]] = {}
    for row in summary:
        if row["axis"] != BASE:
            axes.setdefault(row["axis"], []).append({**row, "is_base": False})
    for axis, rows in axes.items():
        value = as_text(getattr(base, axis))
        rows += [{**row, "value": value, "is_base": True} for row in summary if row["axis"] == BASE]
        # Numbers first, in their order.
        rows.sort(key=lambda row: (not row["value"].isdecimal(), int(row["value"]) if row["value"].isdecimal() else 0))
    return axes


def table(axes: dict[str, list[dict]]) -> str:
    """The rows of `group_by_axis` in Markdown."""
    lines = ["| | parameters | MACs | inference | top-1 |", "|---|---|---|---|---|"]
    for axis, rows in axes.items():
        for row in rows:
            name = f"{axis} {row['value']}" + (" (base)" if row["is_base"] else "")
            spread = f" ± {100 * row['top_1_std']:.2f}" if row["runs"] > 1 else ""
            lines.append(
                f"| {name} | {row['parameters']:,} | {row['macs'] / 1e6:.2f} M | {row['inference_ms']:.1f} ms | "
                f"{100 * row['top_1_mean']:.2f}{spread} |"
            )
    return "\n".join(lines) + "\n"
