"""Draws accuracy against parameters and multiply-accumulates: published models, and the results of runs."""

import json
import re
from itertools import cycle
from pathlib import Path
from typing import Any

import rednet
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rednet.training.figures.style import STYLES, labels_of, look
from transformers import AutoConfig, AutoModelForImageClassification


PUBLISHED = Path(__file__).with_name("trade_off.yaml")
RESULT_MARKERS = ["*", "p", "h", "<", ">", "8", "d"]


def draw_trade_offs(paths: list[Path]) -> dict[str, Figure]:
    """One figure with the published models and the results on their data set, and one for each other data set.

    Args:
        paths: results.json of runs.

    Returns:
        The figures by file name.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, or is not that of a finished run.
    """
    published = yaml.safe_load(PUBLISHED.read_text())
    data_set, comparable = published["data_set"], []
    others: dict[str, list[dict]] = {}
    for label, path in zip(labels_of([path.parent for path in paths]), paths):
        result = read_result(path, label)
        if is_on(result, data_set):
            comparable.append(result)
        else:
            others.setdefault(result["data_set"], []).append(result)
    figures = {"trade_off": draw_trade_off(data_set["title"], published["series"], comparable)}
    for title, results in others.items():
        name = "trade_off_" + re.sub(r"\W+", "_", title).strip("_").lower()
        runs = ", ".join(result["name"] for result in results)
        print(
            f"{runs}: measured on {title}, not on the {data_set['samples']} images of {data_set['title']}, so in a figure "
            "of its own"
        )
        figures[name] = draw_trade_off(title, [], results)
    return figures


def read_result(path: Path, label: str) -> dict:
    """The point of a run, in the units of the published ones, and the images that it was evaluated on."""
    result, options = (read_json(file) for file in (path, path.with_name("options.json")))
    try:
        images = options["dataset_name"] or options["train_dir"] or options["validation_dir"]
        split, samples = options["validation_split"], result["eval_samples"]
        macs = (
            result["macs"]
            if "macs" in result
            else count_macs(path.parent, options.get("eval_image_size") or options["image_size"])
        )
        return {
            "name": label,
            "images": images,
            "samples": samples,
            "data_set": f"{images.rstrip('/').split('/')[-1]}, {split}, {samples} images",
            "parameters": result["parameters"] / 1e6,
            "macs": None if macs is None else macs / 1e9,
            "top_1": 100 * result["eval_accuracy"],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} and its options.json do not belong to a finished run: {error!r}") from error


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; train.py, finetune.py and evaluate_model.py write it to their output_dir"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def count_macs(run: Path, image_size: int) -> int | None:
    """The multiply-accumulates of the last model of a run, from its configuration; None if it has no model."""
    folder = run / "last"
    if not (folder / "config.json").is_file():
        print(f"{run} has no model in {folder} to count multiply-accumulates: the plot of these omits it")
        return None
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder))
    return rednet.count_macs(model, image_size, image_size)


def is_on(result: dict, data_set: dict) -> bool:
    """Whether a result is on the images of `data_set`."""
    parts = {part.lower() for part in Path(result["images"]).parts}
    return bool(parts & {name.lower() for name in data_set["names"]}) and result["samples"] == data_set["samples"]


@look
def draw_trade_off(title: str, series: list[dict], results: list[dict]) -> Figure:
    panels = {"parameters": "parameters (millions)", "macs": "multiply-accumulates (billions)"}
    if not series and all(result["macs"] is None for result in results):
        del panels["macs"]
    figure = Figure()
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(all_axes, panels.items()):
        for number, (models, style) in enumerate(zip(series, cycle(STYLES))):
            draw_series(axes, models, key, style, bold=number == 0)
        for result, marker in zip(results, cycle(RESULT_MARKERS)):
            if result[key] is not None:
                (line,) = axes.plot(result[key], result["top_1"], marker, color="black", markerfacecolor="gold")
                line.set(markersize=18, label=result["name"], gid=f"{result['name']} {key}", zorder=4)
        axes.set_xlabel(label)
        axes.margins(0.12)  # space for the names at the edges
        axes.set_xlim(left=0)
    all_axes[0].set_ylabel("top-1 accuracy (%)")
    figure.suptitle(title)
    handles, names = all_axes[0].get_legend_handles_labels()
    note = None
    if inexact := [models for models in series if "read_off" in models]:
        error = max(models["read_off"] for models in inexact)
        note = f"{', '.join(models['name'] for models in inexact)}: read off published plots, ± {error}"
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=4, title=note, title_fontsize=13)
    return figure


def draw_series(axes: Axes, series: dict, key: str, style: dict, bold: bool) -> None:
    models = series["models"]
    (line,) = axes.plot([model[key] for model in models], [model["top_1"] for model in models], **style)
    line.set(label=series["name"], gid=f"{series['name']} {key}", markerfacecolor=style["color"] if bold else "white")
    line.set(linewidth=3 if bold else 2, markersize=10 if bold else 8, zorder=3 if bold else 2)
    for model in models:
        if "name" in model:
            position: dict[str, Any] = (
                {"xytext": (-4, 10), "ha": "right"} if bold else {"xytext": (8, -18), "ha": "left"}
            )
            point = (model[key], model["top_1"])
            axes.annotate(model["name"], point, textcoords="offset points", color=style["color"], **position)
