"""Draws what runs of the training scripts logged: loss, accuracy, learning rate and speed."""

import json
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rednet.training.figures.style import STYLES, labels_of, look


@look
def draw_curves(runs: list[Path]) -> Figure:
    """
    Args:
        runs: output folders of the training scripts.

    Raises:
        FileNotFoundError, ValueError: a folder has no log, or a damaged one.
    """
    logs = [read_log(run) for run in runs]
    figure = Figure()
    panels = {
        "loss": {"loss": "training", "eval_loss": "evaluation"},
        "accuracy (%)": {
            "eval_accuracy": "top-1",
            "eval_top_5_accuracy": "top-5",
            "eval_mean_iou": "mIoU",
            "eval_box_ap": "box AP",
        },
        "learning rate": {"learning_rate": "learning rate"},
        "images per second": {"images_per_second": "images per second"},
    }
    all_axes = figure.subplots(2, 2, sharex=True)
    for axes, (label, keys) in zip(all_axes.flat, panels.items()):
        for log, style in zip(logs, cycle(STYLES)):
            for key in keys:
                draw_curve(axes, log, key, style)
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing logged yet", ha="center", transform=axes.transAxes)
        elif len(keys) > 1:
            drawn = {line.get_gid() for line in axes.lines}
            axes.legend(handles=[legend_entry(key, name) for key, name in keys.items() if key in drawn])
    for axes in all_axes[-1]:
        axes.set_xlabel("step")
    handles = [Line2D([], [], **style, label=name) for name, style in zip(labels_of(runs), cycle(STYLES))]
    handles = handles[: len(runs)]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, handlelength=4)
    return figure


def draw_curve(axes: Axes, log: list[dict], key: str, style: dict) -> None:
    """Draws one value of one run. Values of evaluations have markers; those that are logged every few steps do not."""
    entries = [entry for entry in log if entry.get(key) is not None]  # null: not finite
    if entries:
        factor = 100 if key.endswith(("accuracy", "mean_iou", "box_ap")) else 1
        (line,) = axes.plot([e["step"] for e in entries], [factor * e[key] for e in entries], **style)
        line.set(gid=key, **marker_of(key, style["color"]))


def marker_of(key: str, color: str) -> dict:
    if not key.startswith("eval_"):
        return {"marker": "", "linewidth": 1.2}
    return {"markerfacecolor": "white" if key == "eval_top_5_accuracy" else color}


def legend_entry(key: str, name: str) -> Line2D:
    return Line2D([], [], **{**STYLES[0], "color": "dimgray", **marker_of(key, "dimgray")}, label=name)


def read_log(run: Path) -> list[dict]:
    """The entries of a run's log.jsonl, without the last line if it is incomplete."""
    path = run / "log.jsonl"
    if not run.is_dir():
        raise FileNotFoundError(f"no such folder: {run}")
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no log.jsonl: expected the output_dir of a training script")
    lines = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
    if not lines:
        raise ValueError(f"{path} is empty: the run has not logged anything yet")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
            entries[-1]["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not an entry with a step: {line.strip()[:60]}") from error
    return entries
