"""Reads the options of the scripts from a YAML file and the command line. The command line wins."""

import argparse
import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, HfArgumentParser

from options import DataOptions, LoopOptions
from rednet import RedNetConfig


Options = TypeVar("Options")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, and a script's description as it is written."""


def parse_options(
    kind: type[Options], arguments: list[str] | None, description: str | None
) -> tuple[Options, argparse.ArgumentParser]:
    """Reads `--config FILE.yaml` and the command line into the dataclass `kind`; the parser is there for its `error`.

    Raises:
        SystemExit: an argument is unknown, missing or of the wrong type; the message names it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    file, rest = first.parse_known_args(arguments)
    usage = "%(prog)s [--config FILE.yaml] [--option value ...]"  # the whole list would hide what an error says
    parser = HfArgumentParser(
        kind, description=description, usage=usage, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--config", help="YAML file with any of these options.")
    if file.config is not None:
        parser.set_defaults(**_read(file.config, kind, parser))
    try:
        options, _, unknown = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    except ValueError as error:  # of TrainingArguments, which checks some of its own
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown on the command line: {_with_nearest(unknown[0], kind, '--')}")
    return options, parser


def check_loop_options(config: LoopOptions, parser: argparse.ArgumentParser) -> None:
    """Stops with a message where a number of `config` is of no use."""
    steps = config.checkpointing_steps
    if steps != "epoch" and not (steps.isdecimal() and int(steps) > 0):
        parser.error(f"--checkpointing_steps is {steps!r}, expected a positive number or 'epoch'")
    counts = ["checkpoints_total_limit", "logging_steps", "eval_epochs", "gradient_accumulation_steps"]
    check_counts([*counts, "num_train_epochs", "max_train_steps", "per_device_train_batch_size"], config, parser)
    check_counts(["per_device_eval_batch_size", "max_train_samples", "max_eval_samples"], config, parser)


def check_counts(names: list[str], config: Any, parser: argparse.ArgumentParser) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, expected at least 1")


def check_data_options(config: DataOptions, parser: argparse.ArgumentParser) -> None:
    """Stops with a message where `config` names no source or two; names the source of a `train_dir`."""
    if bool(config.dataset_name) == bool(config.train_dir):
        parser.error("give one of --dataset_name, a Hub id or a local folder, and --train_dir, a folder of images")
    if config.validation_dir and not config.train_dir:
        parser.error("--validation_dir belongs to --train_dir, which is not given")
    if config.validation_dir and config.train_val_split is not None:
        parser.error("give one of --validation_dir and --train_val_split: both say which images to evaluate on")
    check_folders(config, parser)


def check_folders(config: DataOptions, parser: argparse.ArgumentParser) -> None:
    for name in ("train_dir", "validation_dir"):
        if getattr(config, name) and not Path(getattr(config, name)).is_dir():
            parser.error(f"--{name} {getattr(config, name)}: there is no such folder")
    if config.train_val_split is not None and not 0 < config.train_val_split < 1:
        parser.error(f"--train_val_split is {config.train_val_split}, expected a part between 0 and 1")


def check_model_name(name: str) -> None:
    """Raises ValueError where `name` is not there and cannot be an id; without this the Hub is asked for it."""
    path = Path(name)
    if path.exists():
        return
    file, folder = path.suffix == ".json", path.parent.is_dir() and len(path.parts) > 1
    if file or folder or name.count("/") > 1 or name.startswith((".", "/")):
        there = [str(one) for one in path.parent.glob("*")]
        raise ValueError(f"there is no {'file' if file else 'folder'} {name}{nearest(name, there)}")


def read_config(name: str, **options) -> RedNetConfig:
    """The configuration of a RedNet: a file, a folder or the id of a Hub repository.

    Raises:
        ValueError, OSError: it is not there, or of another model; the message names it.
    """
    check_model_name(name)
    config = AutoConfig.from_pretrained(name, **options)
    if config.model_type != "rednet":
        raise ValueError(f"{name} is of the type {config.model_type!r}, expected 'rednet'")
    return config


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the script with the message alone where the data or the model are not what was said."""
    try:
        yield
    except (OSError, ValueError, DatasetsError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error


def nearest(name: str, choices: list[str]) -> str:
    found = difflib.get_close_matches(name, choices, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _read(path: Path, config_kind: type, parser: argparse.ArgumentParser) -> dict:
    if not path.is_file():
        parser.error(f"--config {path}: there is no such file")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        parser.error(f"{path} is not YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{path} holds {values!r}, expected lines of `option: value`")
    kinds = get_type_hints(config_kind)
    for name in values:
        if name not in kinds:
            parser.error(f"unknown in {path}: {_with_nearest(str(name), config_kind)}")
    return {name: _convert(path, name, value, kinds[name], parser) for name, value in values.items()}


def _convert(path: Path, name: str, value: Any, kind: Any, parser: argparse.ArgumentParser) -> Any:
    """`value` as the type of its option, as far as YAML reads it differently from what was meant."""
    kinds = _kinds(kind)
    try:
        if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
            value = float(value)  # YAML reads 1e-4 as a string
        elif str in kinds and isinstance(value, int) and type(value) not in kinds:
            value = "no" if value is False else str(value)  # and a bare `no` as False
        elements = get_args(kind)[0] if list in kinds and isinstance(value, list) else object
        if elements is float:
            value = [float(element) for element in value]
        if not isinstance(value, kinds) or isinstance(value, list) and not all(isinstance(v, elements) for v in value):
            raise ValueError
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError  # bool is an int to isinstance
    except (ValueError, TypeError):
        parser.error(f"{path}: {name} is {value!r}, expected {getattr(kind, '__name__', kind)}")
    return value


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a type hint allows."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    return (type(get_args(hint)[0]),) if get_origin(hint) is Literal else (get_origin(hint) or hint,)


def _with_nearest(unknown: str, kind: type, prefix: str = "") -> str:
    name = unknown.split("=")[0].lstrip("-").replace("-", "_")
    names = [prefix + field.name for field in fields(kind)]
    return unknown + (nearest(prefix + name, names) or " (--help lists what there is)")
