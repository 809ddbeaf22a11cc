"""Runs a study of RedNet's architecture: changes one value at a time, or compares models. Every run is repeated with
several seeds.

    python training/ablate.py --config configs/ablations/fashion_mnist.yaml

It writes a folder for every run of train.py to `output_dir`, `runs.csv` with one row for each, `summary.md` and
`summary.csv` with means, standard errors and times, and `ablation.svg` and `.png`. The same command resumes an
interrupted study; it does not repeat finished runs.
"""

import datetime
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import yaml
from rednet import RedNetConfig, RedNetForImageClassification, count_macs, count_parameters
from rednet.hub import check_writable
from rednet.training.engine.study import BASE, MODEL, as_text, group_by_axis, measure, summarize, table
from rednet.training.figures.study import draw_study
from rednet.training.figures.style import save
from rednet.training.options.groups import option
from rednet.training.options.models import check_channels
from rednet.training.options.packaged import find_architecture, find_recipe
from rednet.training.options.parser import parse_options
from rednet.training.options.types import Count, Folder, Seeds
from rednet.training.train import parse_config
from rednet.training.utils.cpus import available_cpus
from rednet.training.utils.errors import clear_errors, nearest
from rednet.training.utils.files import write_csv, write_json, write_text
from tqdm.auto import tqdm
from transformers import AutoConfig


TRAIN = Path(__file__).with_name("train.py")


@dataclass
class Study:
    """The options of `ablate.py`."""

    training: str = option("", "Recipe of every run: a YAML file for train.py, or a packaged name.")
    options: list[str] = option([], "Options of train.py that differ from the recipe, such as num_train_epochs=3.")
    axes: list[str] = option(
        [], "Options of RedNetConfig and their values, name=1,2,null, which change one at a time."
    )
    models: list[str] = option(
        [], "Models that differ in several options of RedNetConfig: a name, and name=value for each option."
    )
    seeds: Seeds = option([0, 1, 2], "Seeds of the repeated runs.")
    launch: str = option("python", "Command that starts train.py: python, or accelerate launch with its options.")
    time_batch_size: Count = option(64, "Batch size of the inference and of the training step that are timed.")
    output_dir: Folder = option("outputs/ablation", "Folder of the study.")


@dataclass
class Variant:
    """The base architecture, or the base with one changed value. For the axis MODEL, the value is the name of a model."""

    axis: str
    value: object
    config: RedNetConfig

    @property
    def key(self) -> tuple[str, str]:
        """Axis and value of its rows."""
        return self.axis, "" if self.axis == BASE else as_text(self.value)

    @property
    def name(self) -> str:
        return BASE if self.axis == BASE else "=".join(self.key)


def main(arguments: list[str] | None = None) -> None:
    study, parser = parse_options(Study, arguments, __doc__)
    if not find_recipe(study.training).is_file():
        parser.error(f"training is {study.training!r}, expected a recipe of train.py: a YAML file or a packaged name")
    recipe = parse_config(train_options(study))
    if recipe.config_name is None:
        parser.error(f"{study.training} starts from weights: a study needs a config_name, the architecture to change")
    try:
        variants = make_variants(
            AutoConfig.from_pretrained(find_architecture(recipe.config_name)).to_diff_dict(),
            read_axes(study.axes),
            read_models(study.models),
        )
        if len(variants) == 1:
            raise ValueError("axes and models are empty: expected options and their values, such as kernel_size=3,5,7")
    except ValueError as error:
        parser.error(str(error))
    check_study(study)
    costs = {variant.key: cost(variant.config, recipe.eval_size) for variant in variants}

    failed = []
    runs = [(variant, seed) for seed in study.seeds for variant in variants]
    for variant, seed in (bar := tqdm(runs, unit="run")):
        bar.set_description(f"{variant.name}, seed {seed}")
        if not train(study, variant, seed):
            failed.append(f"{variant.name}, seed {seed}")
        write_csv(Path(study.output_dir) / "runs.csv", finished_rows(study, variants, costs))
    write_summary(study, variants, costs, recipe.eval_size)
    if failed:
        sys.exit(f"error: these runs failed, see their output above: {'; '.join(failed)}")


def read_axes(axes: list[str]) -> dict[str, list]:
    """Parses `name=1,2,null` to {name: [1, 2, None]}.

    Raises:
        ValueError: an axis has another form, RedNetConfig has no such option, or it or a value occurs twice.
    """
    parsed: dict[str, list] = {}
    for axis in axes:
        name, values = read_assignment(axis, f"axis {axis!r}", "kernel_size=3,5,7")
        if name in parsed:
            raise ValueError(f"axis {axis!r}: {name} is an axis already, expected one with all values")
        if len(set(map(as_text, values))) < len(values):
            raise ValueError(f"axis {axis!r}: expected different values")
        parsed[name] = values
    return parsed


def read_models(models: list[str]) -> dict[str, dict]:
    """Parses `ResNet-50 operator_type=convolution depths=[3,4,6,3]` to {"ResNet-50": {...}}.

    Raises:
        ValueError: a model has another form, RedNetConfig has no such option, or two models have the same name.
    """
    parsed: dict[str, dict] = {}
    for model in models:
        name, *assignments = model.split()
        if not assignments or "=" in name or "/" in name:
            raise ValueError(f"model {model!r}: expected a name and options, such as ResNet operator_type=convolution")
        if name in parsed:
            raise ValueError(f"model {model!r}: there is another model {name!r}, expected different names")
        parsed[name] = {}
        for assignment in assignments:
            option, values = read_assignment(assignment, f"model {name!r}: {assignment!r}", "depths=[1,2,2]")
            if len(values) != 1:
                raise ValueError(f"model {name!r}: {assignment!r} has {len(values)} values, expected one")
            parsed[name][option] = values[0]
    return parsed


def read_assignment(text: str, where: str, example: str) -> tuple[str, list]:
    """The option of RedNetConfig and the values of `name=1,2,null`."""
    options: list[str] = [field.name for field in fields(RedNetConfig)]
    name, _, values = text.partition("=")
    if not values:
        raise ValueError(f"{where}: expected an option and its values, such as {example}")
    if name not in options:
        raise ValueError(f"{where}: {name!r} is not an option of RedNetConfig{nearest(name, options)}")
    try:
        return name, yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: its values are not YAML: {error}") from error


def make_variants(base: dict, axes: dict[str, list], models: dict[str, dict] | None = None) -> list[Variant]:
    """The base, every value of every axis that differs from it, and the models.

    Raises:
        ValueError: a value is invalid for RedNetConfig.
    """
    unchanged = RedNetConfig(**base)
    variants = [Variant(BASE, None, unchanged)]
    changes: list[tuple[str, object, dict]] = [
        (axis, value, {axis: value})
        for axis, values in axes.items()
        for value in values
        if getattr(unchanged, axis) != value
    ]
    for axis, value, changed in changes + [(MODEL, name, changed) for name, changed in (models or {}).items()]:
        where = f"axis {axis}={as_text(value)}" if axis != MODEL else f"model {value!r}"
        try:
            config = RedNetConfig(**{**base, **changed})
        except Exception as error:  # `strict` raises another class for each kind of mistake
            raise ValueError(f"{where}: {error}") from error
        check_channels(config, where)
        variants.append(Variant(axis, value, config))
    return variants


def check_study(study: Study) -> None:
    """Raises SystemExit if `output_dir` has runs of another recipe, or cannot be written. Axes and seeds may change."""
    with clear_errors():
        check_writable(Path(study.output_dir))
    path = Path(study.output_dir) / "study.json"
    options = {"training": find_recipe(study.training).read_text(), "options": study.options}
    if path.exists() and _without_comments(json.loads(path.read_text())) != _without_comments(options):
        sys.exit(
            f"error: {study.output_dir} belongs to a study with another recipe: choose another --output_dir, or remove "
            "the folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, options)


def _without_comments(options: dict) -> tuple[dict, list[str]]:
    return yaml.safe_load(options["training"]), options["options"]


def train_options(study: Study) -> list[str]:
    """The command line of train.py, without what differs from run to run."""
    return ["--config", study.training, *(f"--{option}" for option in study.options)]


def seed_folder(study: Study, variant: Variant, seed: int) -> Path:
    return Path(study.output_dir) / variant.name / f"seed_{seed}"


def train(study: Study, variant: Variant, seed: int) -> bool:
    """Starts or resumes a run, unless it is finished. Returns whether it has a result."""
    folder = seed_folder(study, variant, seed)
    if (folder / "results.json").exists():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    architecture = folder.parent / "config.json"
    write_json(architecture, {"model_type": "rednet", **variant.config.to_diff_dict()})
    command = [sys.executable if word == "python" else word for word in shlex.split(study.launch)]
    command += [str(TRAIN), *train_options(study), "--config_name", str(architecture)]
    command += ["--seed", str(seed), "--output_dir", str(folder)]
    return subprocess.run(command).returncode == 0


def cost(config: RedNetConfig, image_size: int) -> dict[str, int]:
    with torch.device("meta"):
        model = RedNetForImageClassification(config)
    return {"parameters": count_parameters(model), "macs": count_macs(model, image_size, image_size)}


def finished_rows(study: Study, variants: list[Variant], costs: dict[tuple, dict]) -> list[dict]:
    """The rows of runs.csv.

    Args:
        costs: parameters and operations, by the variant's key.
    """
    rows = []
    for variant in variants:
        for seed in study.seeds:
            path = seed_folder(study, variant, seed) / "results.json"
            if path.exists():
                results = json.loads(path.read_text())
                rows.append(
                    {
                        "axis": variant.key[0],
                        "value": variant.key[1],
                        "seed": seed,
                        **costs[variant.key],
                        "top_1": results["eval_accuracy"],
                        "loss": results["eval_loss"],
                        "train_seconds": results["train_seconds"],
                    }
                )
    return rows


def write_summary(study: Study, variants: list[Variant], costs: dict[tuple, dict], image_size: int) -> None:
    """Writes the summary of the finished runs as a table, a CSV file and a figure."""
    folder, rows, base = Path(study.output_dir), finished_rows(study, variants, costs), variants[0].config
    if all(row["axis"] == BASE for row in rows):  # nothing to compare
        return
    configs = {variant.key: variant.config for variant in variants}
    summary = summarize(rows, measure(configs, study.time_batch_size, image_size))
    axes = group_by_axis(summary, base)
    write_csv(folder / "summary.csv", summary)
    write_text(folder / "summary.md", table(axes) + "\n" + describe_conditions(study) + "\n")
    for path in save(draw_study(axes), folder, "ablation"):
        print(path)
    print((folder / "summary.md").read_text())


def describe_conditions(study: Study) -> str:
    """The text below the table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"Seeds {', '.join(map(str, study.seeds))}: mean ± standard error of the top-1 in percent. Bold: a difference of "
        f"more than twice its standard error. Recipe: `{study.training}` {' '.join(study.options)}. Inference and "
        f"training step: median of batches of {study.time_batch_size}, models take turns. {datetime.date.today()}, "
        f"{device} of {available_cpus()}, torch {torch.__version__}."
    )


if __name__ == "__main__":
    main()
