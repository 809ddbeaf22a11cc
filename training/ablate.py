"""Runs a study of RedNet's architecture: one value changed at a time, every run repeated with several seeds.

    python training/ablate.py --config configs/ablations/fashion_mnist.yaml

In `output_dir` appear a folder for every run of train.py, `runs.csv` with one row for each, `summary.md` and
`summary.csv` with mean and standard deviation over the seeds, and `ablation.svg` and `.png`. Started again with the
same options, an interrupted study goes on where it was; runs that have ended are not repeated.
"""

import csv
import datetime
import difflib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import AutoConfig

from arguments import parse_config, parse_options
from figures import save
from rednet import RedNetConfig, RedNetForImageClassification, count_macs, count_parameters
from run_folder import write_json, write_text


TRAIN = Path(__file__).with_name("train.py")
BASE = "base"


@dataclass
class Study:
    """What is compared, in which recipe."""

    training: str = field(default="", metadata={"help": "Recipe of every run: a YAML file for train.py."})
    options: list[str] = field(
        default_factory=list, metadata={"help": "More options of train.py, such as num_train_epochs=3."}
    )
    axes: list[str] = field(
        default_factory=list,
        metadata={"help": "What is changed, one at a time: options of RedNetConfig and their values, name=1,2,null."},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Every run is repeated with these."})
    launch: str = field(
        default="python", metadata={"help": "What starts train.py: python, or accelerate launch with its options."}
    )
    time_batch_size: int = field(default=64, metadata={"help": "Images in the batch whose inference is timed."})
    output_dir: str = field(default="outputs/ablation", metadata={"help": "Everything goes here."})


@dataclass
class Variant:
    """The base architecture with one value changed, or as it is."""

    axis: str
    value: object
    config: RedNetConfig

    @property
    def name(self) -> str:
        return BASE if self.axis == BASE else f"{self.axis}={shown(self.value)}"


def main(arguments: list[str] | None = None) -> None:
    study, parser = parse_options(Study, arguments, __doc__)
    if not Path(study.training).is_file():
        parser.error(f"training is {study.training!r}, expected the YAML file of a recipe for train.py")
    recipe = parse_config(train_options(study))
    if recipe.config_name is None:
        parser.error(f"{study.training} starts from weights: a study needs a config_name, the architecture to change")
    try:
        variants = make_variants(AutoConfig.from_pretrained(recipe.config_name).to_diff_dict(), read_axes(study.axes))
    except ValueError as error:
        parser.error(str(error))
    check_study(study)

    failed = []
    runs = [(variant, seed) for seed in study.seeds for variant in variants]
    for variant, seed in (bar := tqdm(runs, unit="run")):
        bar.set_description(f"{variant.name}, seed {seed}")
        if not train(study, variant, seed):
            failed.append(f"{variant.name}, seed {seed}")
        write_csv(Path(study.output_dir) / "runs.csv", finished_rows(study, variants, recipe.image_size))
    summarize(study, variants, recipe.image_size)
    if failed:
        sys.exit(f"error: not finished, see their output above: {'; '.join(failed)}")


def shown(value: object) -> str:
    return "all" if value is None else str(value)


def read_axes(axes: list[str]) -> dict[str, list]:
    """`name=1,2,null` as {name: [1, 2, None]}.

    Raises:
        ValueError: it is not of this form, or RedNetConfig has no such option.
    """
    known, read = [option.name for option in fields(RedNetConfig)], {}
    for axis in axes:
        name, equals, values = axis.partition("=")
        if not equals:
            raise ValueError(f"axis {axis!r}: expected an option and its values, such as kernel_size=3,5,7")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"axis {name!r} is no option of RedNetConfig" + (f": {nearest[0]}?" if nearest else ""))
        read[name] = yaml.safe_load(f"[{values}]")
    if not read:
        raise ValueError("axes is empty: expected what to change, such as kernel_size=3,5,7")
    return read


def make_variants(base: dict, axes: dict[str, list]) -> list[Variant]:
    """The base, and every value of every axis that differs from it.

    Raises:
        ValueError: RedNetConfig does not take one of the values.
    """
    unchanged = RedNetConfig(**base)
    variants = [Variant(BASE, None, unchanged)]
    for axis, values in axes.items():
        for value in values:
            try:
                config = RedNetConfig(**{**base, axis: value})
            except Exception as error:  # of `strict`, which has one of its own for every kind of mistake
                raise ValueError(f"axis {axis}={shown(value)}: {error}") from error
            if getattr(unchanged, axis) != value:
                variants.append(Variant(axis, value, config))
    return variants


def check_study(study: Study) -> None:
    """Refuses an `output_dir` with runs of another recipe; new axes and seeds are welcome."""
    path = Path(study.output_dir) / "study.json"
    options = {"training": Path(study.training).read_text(), "options": study.options}
    if path.exists() and json.loads(path.read_text()) != options:
        sys.exit(
            f"error: {study.output_dir} holds a study with another recipe: give another --output_dir, or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, options)


def train_options(study: Study) -> list[str]:
    return ["--config", study.training, *(f"--{option}" for option in study.options)]


def run_folder(study: Study, variant: Variant, seed: int) -> Path:
    return Path(study.output_dir) / variant.name / f"seed_{seed}"


def train(study: Study, variant: Variant, seed: int) -> bool:
    """Whether the run has ended with a result, now or before. Where it was interrupted, train.py goes on."""
    folder = run_folder(study, variant, seed)
    if (folder / "results.json").exists():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    architecture = folder.parent / "config.json"
    write_json(architecture, {"model_type": "rednet", **variant.config.to_diff_dict()})
    command = [sys.executable if word == "python" else word for word in shlex.split(study.launch)]
    command += [str(TRAIN), *train_options(study), "--config_name", str(architecture)]
    command += ["--seed", str(seed), "--output_dir", str(folder)]
    return subprocess.run(command).returncode == 0


def meta_model(config: RedNetConfig) -> RedNetForImageClassification:
    with torch.device("meta"):
        return RedNetForImageClassification(config)


def finished_rows(study: Study, variants: list[Variant], image_size: int) -> list[dict]:
    rows = []
    for variant in variants:
        model = meta_model(variant.config)
        cost = {"parameters": count_parameters(model), "macs": count_macs(model, image_size, image_size)}
        for seed in study.seeds:
            path = run_folder(study, variant, seed) / "results.json"
            if path.exists():
                results = json.loads(path.read_text())
                rows.append(
                    {
                        "axis": variant.axis,
                        "value": "" if variant.axis == BASE else shown(variant.value),
                        "seed": seed,
                        **cost,
                        "top_1": results["eval_accuracy"],
                        "loss": results["eval_loss"],
                        "train_seconds": results["train_seconds"],
                    }
                )
    return rows


def write_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@torch.no_grad()
def inference_seconds(configs: dict[str, RedNetConfig], batch_size: int, image_size: int) -> dict[str, float]:
    """Median seconds of a batch for every model. They take turns, so that what slows the machine slows them all."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    models = {
        name: RedNetForImageClassification(config).eval().to(device, memory_format=torch.channels_last)
        for name, config in configs.items()
    }
    times = {name: [] for name in models}
    for turn in tqdm(range(8), desc="time", unit="turn"):
        for name, model in models.items():
            start = time.perf_counter()
            model(images).logits.sum().item()  # waits for a GPU
            if turn > 0:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def summarize(study: Study, variants: list[Variant], image_size: int) -> None:
    """Mean and standard deviation over the seeds, as a table, as a file, and as a picture."""
    folder, rows = Path(study.output_dir), finished_rows(study, variants, image_size)
    seconds = inference_seconds({v.name: v.config for v in variants}, study.time_batch_size, image_size)
    summary = []
    for variant in variants:
        mine = [row for row in rows if (row["axis"], row["value"]) == key(variant)]
        if not mine:
            continue
        accuracies = [row["top_1"] for row in mine]
        summary.append(
            {
                "axis": variant.axis,
                "value": mine[0]["value"],
                "runs": len(mine),
                "parameters": mine[0]["parameters"],
                "macs": mine[0]["macs"],
                "inference_ms": round(1000 * seconds[variant.name], 2),
                "top_1_mean": statistics.mean(accuracies),
                "top_1_std": statistics.stdev(accuracies) if len(mine) > 1 else 0.0,
            }
        )
    if not summary:
        return
    write_csv(folder / "summary.csv", summary)
    base = variants[0].config
    write_text(folder / "summary.md", table(summary, base) + "\n" + conditions(study) + "\n")
    for path in save(draw(summary, base), folder, "ablation"):
        print(path)
    print((folder / "summary.md").read_text())


def key(variant: Variant) -> tuple[str, str]:
    return variant.axis, "" if variant.axis == BASE else shown(variant.value)


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


def conditions(study: Study) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"Seeds {', '.join(map(str, study.seeds))}: mean ± standard deviation of the top-1 in per cent. Recipe: "
        f"`{study.training}` {' '.join(study.options)}. Inference: median of a batch of {study.time_batch_size}, all "
        f"models in turns. {datetime.date.today()}, {device} of {os.cpu_count()}, torch {torch.__version__}."
    )


def draw(summary: list[dict], base: RedNetConfig) -> Figure:
    """Accuracy and operations over each axis."""
    axes = with_base(summary, base)
    figure = Figure(figsize=(13.33, 7.5))
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


if __name__ == "__main__":
    main()
