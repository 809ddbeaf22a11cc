"""Parses the options of a script from a YAML file and the command line.

Both sources are first split into names and words: `lr_steps: [30, 60]` in a file and `--lr_steps 30 60` both become
("lr_steps", ["30", "60"]). One parser then converts and checks the words, so that an option means the same in both.
"""

import argparse
import json
import math
import os
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from rednet.training.options.groups import DataOptions
from rednet.training.options.optimization import LossOptions, OptimizationOptions
from rednet.training.options.packaged import find_recipe, recipe_names
from rednet.training.options.types import Constraint
from rednet.training.utils.errors import nearest
from transformers import HfArgumentParser
from transformers.hf_argparser import DataClassType


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
Words = tuple[str, list[str]]  # the name of an option, and what is given for it

# If an option is on the command line, the options of the file that it replaces: a data source replaces another source
# and the options that describe that one.
OF_DATASETS = ["dataset_name", "dataset_config_name", "train_split", "validation_split"]
OF_DATASETS += ["image_column_name", "label_column_name"]
REPLACED = {
    "dataset_name": ["train_dir", "validation_dir"],
    "train_dir": OF_DATASETS,
    "validation_dir": [*OF_DATASETS, "train_val_split"],
    "train_val_split": ["validation_dir"],
}
MODELS = {"model_name_or_path": ["config_name"], "config_name": ["model_name_or_path"]}

NULL = ("null", "~")  # as in YAML, where an empty value is null as well
TYPES = {bool: "true or false", int: "an integer", float: "a number"}


def parse_options(
    kind: type[Options],
    arguments: list[str] | None,
    description: str | None,
    replaced: dict[str, list[str]] = REPLACED,
) -> tuple[Options, argparse.ArgumentParser]:
    """Parses the file of `--config` and the command line, which overrides the file.

    Args:
        kind: the dataclass of the options.
        arguments: the command line; by default that of the process.
        description: for `--help`.
        replaced: for an option on the command line, the options of the file that it replaces.

    Returns:
        The options, and the parser, with whose `error` the caller reports combinations that are invalid.

    Raises:
        SystemExit: an option is unknown or invalid. The message names the file, the option, what was given and what
            was expected.
    """
    parser = OptionParser(kind, description)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "-h" in arguments or "--help" in arguments:
        parser.parse_args(["--help"])
    command_line = split_command_line(arguments, parser)
    values = parser.parse_args([])  # the defaults
    recipe = dict(command_line).get("config")
    command_line = [(name, words) for name, words in command_line if name != "config"]
    if recipe is not None:
        path = read_path(recipe, parser)
        for name, words in split_recipe(path, parser):
            parser.set(values, name, words, f"{path}: ")
        dropped = {other for name, _ in command_line for other in replaced.get(name, [])}
        if not getattr(values, "dataset_name", ""):  # the splits and columns then describe folders
            dropped -= set(OF_DATASETS)
        for name in dropped:
            setattr(values, name, parser.get_default(name))
    for name, words in command_line:
        parser.set(values, name, words)
    try:
        options = kind(**{field.name: getattr(values, field.name) for field in fields(kind) if field.init})
    except json.JSONDecodeError as error:  # of TrainingArguments, which does not name the option
        name = next(name for name, value in vars(values).items() if value == error.doc)
        parser.error(f"--{name} is {error.doc}, expected JSON, or a mapping in a recipe: {error}")
    except Exception as error:  # TrainingArguments checks some of its options by itself
        parser.error(str(error))
    return options, parser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that are values, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, "") else super()._get_help_string(action)


class OptionParser(HfArgumentParser):
    """Has one option for each field of a dataclass, and sets them one at a time."""

    def __init__(self, kind: type["DataclassInstance"], description: str | None):
        self.actions: dict[str, argparse.Action] = {}
        self.hints = get_type_hints(kind, include_extras=True)
        super().__init__(
            [DataClassType(kind)],
            description=description,
            usage="%(prog)s [--config RECIPE] [--option value ...]",  # a list of all would hide the error below it
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=HelpFormatter,
        )
        super().add_argument(
            "--config",
            help="YAML file with any of these options, or the name of a packaged recipe (imagenet_rednet50).",
        )

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """As in argparse, but lists may be empty, as in YAML."""
        if settings.get("nargs") == "+":
            settings["nargs"] = "*"
        action = super().add_argument(*names, **settings)
        self.actions[names[0]] = action
        return action

    def set(self, values: argparse.Namespace, name: str, words: list[str], source: str = "") -> None:
        """Converts and checks `words`, and sets them as the option `name` in `values`.

        Args:
            source: what the message of an error starts with.
        """
        option = f"--{name}"
        if option not in self.actions:
            hint = nearest(option, self.actions) or "; --help lists all options"
            self.error(f"{source}unknown option {option}{hint}")
        is_null = len(words) == 1 and words[0] in NULL
        if self.allows_none(name) and (is_null or words == [""]):
            setattr(values, name, None)
            return
        words = [expand_home(word) for word in words]
        if len(words) > 1 and list[str] in get_args(self.hints.get(name)):  # `str | list[str]`, for argparse a str
            setattr(values, name, words)
            return
        try:
            # `=` also lets a value start with a hyphen.
            _, unused = self.parse_known_args(
                [f"{option}={words[0]}"] if len(words) == 1 else [option, *words], values
            )
            valid = not is_null and not unused and self.is_valid(name, getattr(values, name, None))
        except argparse.ArgumentError:
            valid = False
        if not valid:
            choices = map(str, self.actions[option].choices or ())
            hint = nearest(" ".join(words), choices)
            self.error(f"{source}{option} is {shlex.join(words) or 'empty'}, expected {self.expected(name)}{hint}")

    def allows_none(self, name: str) -> bool:
        return type(None) in get_args(self.hints.get(name))

    def is_valid(self, name: str, value: Any) -> bool:
        """Whether `value`, which has the type of the option, meets its constraints."""
        constraints = find_constraints(self.hints.get(name))
        numbers = value if isinstance(value, list) else [value]
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        return all(finite and constraint.holds(value) for constraint in constraints)

    def expected(self, name: str) -> str:
        """The valid values of an option, in words."""
        action, hint = self.actions[f"--{name}"], self.hints.get(name)
        if action.nargs == 0:
            return "no value"
        if constraints := find_constraints(hint):
            text = constraints[0].description
        elif action.choices:
            text = f"one of {', '.join(map(str, action.choices))}"
        else:
            text = next((TYPES[kind] for kind in TYPES if kind in (hint, *get_args(hint))), "one value")
        return f"{text} or null" if self.allows_none(name) else text


def expand_home(word: str) -> str:
    """Expands ~/ as a shell does: in a recipe and in `--option=~/folder`, no shell does."""
    return os.path.expanduser(word) if word.startswith("~/") else word


def find_constraints(hint: Any) -> list[Constraint]:
    """The constraints in a type hint."""
    if get_origin(hint) is Annotated:
        return [constraint for constraint in hint.__metadata__ if isinstance(constraint, Constraint)]
    return [constraint for part in get_args(hint) for constraint in find_constraints(part)]


def split_command_line(arguments: list[str], parser: argparse.ArgumentParser) -> list[Words]:
    """Splits `--name word ...` and `--name=word` into names and words."""
    given: list[Words] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, word = argument[2:].partition("=")
            given.append((name.replace("-", "_"), [word] if equals else []))
        elif given:
            given[-1][1].append(argument)
        else:
            parser.error(f"unknown argument {argument}, expected --option value; a recipe is --config {argument}")
    return given


def read_path(words: list[str], parser: argparse.ArgumentParser) -> Path:
    """The path of a recipe, from what is given for `--config`."""
    name = " ".join(words)
    path = find_recipe(expand_home(name))
    if not path.is_file():
        names = recipe_names()
        parser.error(
            f"--config {name}: there is no such file or packaged recipe{nearest(name, names)}; the packaged recipes are "
            f"{', '.join(names)}"
        )
    return path


def split_recipe(path: Path, parser: argparse.ArgumentParser) -> list[Words]:
    """Splits a YAML file of `option: value` lines into names and words."""
    try:
        text = path.read_text()
        # The basic loader keeps words as they are written: `no` is not false, and 1e-4 is not text.
        words, values = yaml.load(text, yaml.BaseLoader) or {}, yaml.safe_load(text) or {}
        node = yaml.compose(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: it is not text, or a date is invalid
        parser.error(f"{path} is not YAML: {error}")
    if not isinstance(words, dict):
        parser.error(f"{path} holds {words!r}, expected lines of `option: value`")
    given = [name.value for name, _ in node.value] if node else []
    for name in given:
        if given.count(name) > 1:  # PyYAML keeps the last value
            parser.error(f"{path}: --{name} is given {given.count(name)} times, expected once")
    return [(name, to_words(word, value)) for (name, word), value in zip(words.items(), values.values())]


def to_words(word: Any, value: Any) -> list[str]:
    """Converts a value of a YAML file into words of a command line, on which TrainingArguments expects mappings as JSON.

    Args:
        word: the value, with scalars as text.
        value: the value, with scalars of the types that YAML gives them.
    """
    if isinstance(word, list):
        return [one if isinstance(one, str) else json.dumps(other) for one, other in zip(word, value)]
    return [json.dumps(value) if isinstance(word, dict) else word]


def check_data_options(config: DataOptions, parser: argparse.ArgumentParser) -> None:
    """Ends the script with a message unless `config` names exactly one data source, which exists if it is a folder."""
    if bool(config.dataset_name) == bool(config.train_dir):
        parser.error("give one of --dataset_name (a Hub id or a local folder) and --train_dir (a folder of images)")
    if config.validation_dir and not config.train_dir:
        parser.error("--validation_dir needs --train_dir")
    if config.validation_dir and config.train_val_split is not None:
        parser.error("give one of --validation_dir and --train_val_split: both choose the images to evaluate on")
    check_folders(config, parser)


def check_sizes(
    sizes: list[int] | None, num_epochs: float, limits_steps: bool, parser: argparse.ArgumentParser
) -> None:
    """Ends the script with a message if not each size of training images has its share of the epochs.

    Args:
        limits_steps: whether the number of steps is given, which overrides that of epochs.
    """
    if sizes is None or len(sizes) == 1:
        return
    if limits_steps:
        parser.error(
            f"--train_image_size has {len(sizes)} sizes, which share num_train_epochs: give this number, not that of steps"
        )
    if len(sizes) > num_epochs:
        parser.error(
            f"--train_image_size has {len(sizes)} sizes, but --num_train_epochs is {num_epochs:g}: each size needs an "
            "epoch"
        )


def check_folders(config: DataOptions, parser: argparse.ArgumentParser) -> None:
    """Ends the script with a message if a folder that `config` names does not exist, or if both splits have one name
    although they are made here."""
    makes_splits = config.train_dir and config.validation_dir or config.train_val_split is not None
    if makes_splits and config.train_split == config.validation_split:
        parser.error(
            f"--train_split and --validation_split are both {config.train_split!r}, expected different names for the "
            "images to train and to evaluate on"
        )
    for name in ("train_dir", "validation_dir"):
        if getattr(config, name) and not Path(getattr(config, name)).is_dir():
            parser.error(f"--{name} {getattr(config, name)}: there is no such folder")


def check_optimization_options(config: OptimizationOptions, parser: argparse.ArgumentParser) -> None:
    """Ends the script with a message if two options of the optimization contradict each other."""
    if config.min_learning_rate > config.learning_rate:
        parser.error(
            f"--min_learning_rate is {config.min_learning_rate:g}, expected at most --learning_rate "
            f"{config.learning_rate:g}"
        )
    for name in ("opt_betas", "opt_eps"):
        if getattr(config, name) is not None and config.optimizer == "sgd":
            parser.error(f"--{name} is for the optimizers adamw, lamb and muon, but --optimizer is sgd")
    if config.clip_mode == "agc" and config.max_grad_norm is None:
        parser.error("--clip_mode agc requires --max_grad_norm, the fraction of the weights' norm, such as 0.01")
    if config.ema_warmup and config.ema_decay is None:
        parser.error("--ema_warmup requires --ema_decay")
    if isinstance(config, LossOptions) and config.bce_target_thresh is not None and config.loss != "bce":
        parser.error(f"--bce_target_thresh is for --loss bce, but --loss is {config.loss}")
