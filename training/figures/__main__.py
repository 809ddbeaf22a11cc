"""Draws figures for a talk or a report, each as .svg and as .png, to be read in colour and in black and white.

    python -m rednet.training.figures trade_off --results outputs/mine/results.json
    python -m rednet.training.figures kernels outputs/demo/last picture.jpg
    python -m rednet.training.figures curves outputs/demo outputs/mine

`trade_off`: accuracy against parameters and multiply-accumulates, as published, and of your runs. `kernels`: where in
a picture the involution kernels of a model are large, each summed over its window. `curves`: what runs of the training
scripts logged.
"""

import argparse
import json
import re
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import rednet
import torch
import torch.nn.functional as F
import yaml
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from rednet.training.figures.style import STYLES, labels_of, look, save
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BaseImageProcessor,
)
from transformers.utils import logging


PUBLISHED = Path(__file__).with_name("trade_off.yaml")
MAX_GROUPS = 4
RESULT_MARKERS = ["*", "p", "h", "<", ">", "8", "d"]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        for name, figure in options.draw(options).items():
            for path in save(figure, options.output_dir, name):
                print(path)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="trade_off | kernels | curves")

    trade_off = commands.add_parser("trade_off", help="accuracy against parameters and multiply-accumulates")
    trade_off.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="results.json",
        help="of train.py, finetune.py or evaluate_model.py. Those on another data set than the published get a figure of their own",
    )
    trade_off.set_defaults(draw=lambda options: draw_trade_offs(options.results))

    kernels = commands.add_parser("kernels", help="the kernels of a model, as heat maps over a picture")
    kernels.add_argument("model", help="a folder, or the id of a Hub repository")
    kernels.add_argument("picture", type=Path)
    kernels.add_argument("--stage", type=int, help="draw only this one, counted from 1")
    kernels.set_defaults(
        draw=lambda options: {
            kernels_name(options.picture, options.stage): draw_kernels(options.model, options.picture, options.stage)
        }
    )

    curves = commands.add_parser("curves", help="loss, accuracy, learning rate and speed of runs")
    curves.add_argument("runs", type=Path, nargs="+", metavar="run", help="output_dir of a training script")
    curves.set_defaults(draw=lambda options: {"learning_curves": draw_curves(options.runs)})

    for command in (trade_off, kernels, curves):
        command.add_argument("--output_dir", type=Path, default=Path("outputs/figures"), help="default: %(default)s")
    return parser.parse_args(arguments)


# Trade-off


def draw_trade_offs(paths: list[Path]) -> dict[str, Figure]:
    """The published models with the results on their data set, and a figure for each other data set, by file name."""
    published = yaml.safe_load(PUBLISHED.read_text())
    data_set, comparable, others = published["data_set"], [], {}
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
            f"{title}: not the {data_set['samples']} images of {data_set['title']}, so in a figure of its own ({runs})"
        )
        figures[name] = draw_trade_off(title, [], results)
    return figures


def read_result(path: Path, label: str) -> dict:
    """A run's point, in the units of the published ones, and the images that it was measured on."""
    result, options = (read_json(file) for file in (path, path.with_name("options.json")))
    try:
        images = options["dataset_name"] or options["train_dir"] or options["validation_dir"]
        split, samples = options["validation_split"], result["eval_samples"]
        macs = result["macs"] if "macs" in result else count_macs(path.parent, options["image_size"])
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
        raise ValueError(f"{path} and the options.json beside it are not of a finished run: {error!r}") from error


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; train.py, finetune.py and evaluate_model.py leave it in their output_dir"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def count_macs(run: Path, image_size: int) -> int | None:
    """Of the model that a run left, from its configuration alone."""
    folder = run / "last"
    if not (folder / "config.json").is_file():
        print(f"{run} has no model in {folder} to count the multiply-accumulates of: it is left out of that plot")
        return None
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder))
    return rednet.count_macs(model, image_size, image_size)


def is_on(result: dict, data_set: dict) -> bool:
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
        for number, (one, style) in enumerate(zip(series, cycle(STYLES))):
            draw_series(axes, one, key, style, bold=number == 0)
        for result, marker in zip(results, cycle(RESULT_MARKERS)):
            if result[key] is not None:
                (line,) = axes.plot(result[key], result["top_1"], marker, color="black", markerfacecolor="gold")
                line.set(markersize=18, label=result["name"], gid=f"{result['name']} {key}", zorder=4)
        axes.set_xlabel(label)
        axes.margins(0.12)  # room for the names at the edges
        axes.set_xlim(left=0)
    all_axes[0].set_ylabel("top-1 accuracy (%)")
    figure.suptitle(title)
    handles, names = all_axes[0].get_legend_handles_labels()
    note = None
    if inexact := [one for one in series if "read_off" in one]:
        most = max(one["read_off"] for one in inexact)
        note = f"{', '.join(one['name'] for one in inexact)}: read off published plots, ± {most}"
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=4, title=note, title_fontsize=13)
    return figure


def draw_series(axes: Axes, series: dict, key: str, style: dict, bold: bool) -> None:
    models = series["models"]
    (line,) = axes.plot([model[key] for model in models], [model["top_1"] for model in models], **style)
    line.set(label=series["name"], gid=f"{series['name']} {key}", markerfacecolor=style["color"] if bold else "white")
    line.set(linewidth=3 if bold else 2, markersize=10 if bold else 8, zorder=3 if bold else 2)
    for model in models:
        if "name" in model:
            place = {"xytext": (-4, 10), "ha": "right"} if bold else {"xytext": (8, -18), "ha": "left"}
            point = (model[key], model["top_1"])
            axes.annotate(model["name"], point, textcoords="offset points", color=style["color"], **place)


# Kernels


def kernels_name(picture: Path, stage: int | None) -> str:
    return f"kernels_{picture.stem}" + ("" if stage is None else f"_stage_{stage}")


def draw_kernels(model_id: str, picture: Path, only: int | None = None) -> Figure:
    model = AutoModel.from_pretrained(model_id).eval()
    processor = AutoImageProcessor.from_pretrained(model_id)
    pixel_values = processor(read_picture(picture), return_tensors="pt")["pixel_values"]
    kernels = model.involution_kernels(pixel_values)
    stages = [list(kernels[stage].values()) for stage in model.config.stage_names[1:]]
    last = {number: kernels[-1] for number, kernels in enumerate(stages, start=1)}
    if only is not None and only not in last:
        raise ValueError(f"stage {only} is not there: {model_id} has stages 1 to {len(last)}")
    seen = denormalize(pixel_values[0], processor)
    return draw_heat_maps(seen, last if only is None else {only: last[only]})


def read_picture(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        return Image.open(path).convert("RGB")
    except Exception as error:  # Pillow has many for damaged files
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def denormalize(pixel_values: Tensor, processor: BaseImageProcessor) -> np.ndarray:
    """The picture as the model sees it, (H, W, 3) from 0 to 1, of pixel values (3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixel_values * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def heat_maps(kernel: Tensor, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """
    By group, a kernel (1, G, K, K, H', W') summed over K x K and enlarged to a size. Of more groups than MAX_GROUPS
    so many, evenly chosen.
    """
    sums = F.interpolate(kernel.float().sum((2, 3)), size, mode="bilinear")[0]
    groups = np.linspace(0, len(sums) - 1, min(len(sums), MAX_GROUPS)).round().astype(int)
    return {int(group): sums[group].numpy() for group in groups}


@look
def draw_heat_maps(picture: np.ndarray, kernels: dict[int, Tensor]) -> Figure:
    """
    One row per stage, one column per group. The groups of a stage are on one scale; stages differ too much for that.

    Args:
        picture: (H, W, 3), from 0 to 1.
        kernels: (1, G, K, K, H', W') by stage.
    """
    maps = {stage: heat_maps(kernel, picture.shape[:2]) for stage, kernel in kernels.items()}
    columns = 1 + max(map(len, maps.values()))
    figure = Figure(figsize=(2.7 * columns + 1.5, 2.9 * len(maps)))
    # Beneath a heat map the picture is grey and pale: what is dark and bright in print is the heat map's, as in the
    # colour bar.
    pale = 0.6 + 0.4 * picture @ [0.299, 0.587, 0.114]
    for (stage, row), all_axes in zip(maps.items(), figure.subplots(len(maps), columns, squeeze=False)):
        for axes in all_axes:
            axes.axis("off")
        _, groups, _, _, height, width = kernels[stage].shape
        all_axes[0].imshow(picture)
        all_axes[0].set_title(f"stage {stage}, {height} x {width}")
        scale = Normalize(min(values.min() for values in row.values()), max(values.max() for values in row.values()))
        for axes, (group, values) in zip(all_axes[1:], row.items()):
            axes.imshow(pale, cmap="gray", vmin=0, vmax=1)
            image = axes.imshow(values, cmap="cividis", norm=scale, alpha=0.7)
            axes.set_title(f"group {group + 1} of {groups}")
        figure.colorbar(image, ax=list(all_axes), label="sum of kernel", fraction=0.03)
    return figure


# Learning curves


@look
def draw_curves(runs: list[Path]) -> Figure:
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
    """One value of one run. What is evaluated once an epoch has markers, what is logged every few steps has none."""
    entries = [entry for entry in log if entry.get(key) is not None]  # null: it was not finite
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
    """The entries of a run's log.jsonl, without the last line where it is only half written."""
    path = run / "log.jsonl"
    if not run.is_dir():
        raise FileNotFoundError(f"there is no folder {run}")
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no log.jsonl: it is not the output_dir of a training script")
    lines = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
    if not lines:
        raise ValueError(f"{path} is empty: the run has logged nothing yet")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
            entries[-1]["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not an entry with a step: {line.strip()[:60]}") from error
    return entries


if __name__ == "__main__":
    logging.set_verbosity_error()  # that a classifier's weights are not needed
    logging.disable_progress_bar()
    main()
