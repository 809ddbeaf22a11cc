"""Reads the options of the scripts from a YAML file and the command line. The command line wins."""

import argparse
import difflib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from rednet import RedNetConfig
from rednet.training.options.groups import DataOptions, Valid
from transformers import AutoConfig, HfArgumentParser, PreTrainedConfig


Options = TypeVar("Options")


CONFIGS = Path(str(files("rednet.configs")))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, and a script's description as it is written."""


# What an option on the command line replaces in the file: a source replaces the other kind of source, with what
# describes it.
OF_DATASETS = ["dataset_name", "dataset_config_name", "train_split", "validation_split"]
OF_DATASETS += ["image_column_name", "label_column_name"]
REPLACED = {
    "dataset_name": ["train_dir", "validation_dir"],
    "train_dir": OF_DATASETS,
    "validation_dir": [*OF_DATASETS, "train_val_split"],
    "train_val_split": ["validation_dir"],
}
MODELS = {"model_name_or_path": ["config_name"], "config_name": ["model_name_or_path"]}


def parse_options(
    kind: type[Options],
    arguments: list[str] | None,
    description: str | None,
    replaced: dict[str, list[str]] = REPLACED,
) -> tuple[Options, argparse.ArgumentParser]:
    """Reads `--config RECIPE` and the command line into the dataclass `kind`; the parser is there for its `error`.

    Args:
        replaced: for an option, those of the file that it replaces when it is on the command line.

    Raises:
        SystemExit: an argument is unknown, missing, of the wrong type, or has an invalid value; the message names it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    file, rest = first.parse_known_args(arguments)
    usage = "%(prog)s [--config RECIPE] [--option value ...]"  # the whole list would hide what an error says
    parser = HfArgumentParser(
        kind, description=description, usage=usage, allow_abbrev=False, formatter_class=HelpFormatter
    )
    parser.add_argument("--config", help="YAML file with any of these options, or the name of a packaged recipe.")
    if file.config is not None:
        values = _read(find_recipe(file.config), kind, parser)
        gone = {other for name in _given(rest) for other in replaced.get(name, [])}
        if not values.get("dataset_name"):  # then splits and columns are not those of a data set of the Hub
            gone -= set(OF_DATASETS)
        values = {name: value for name, value in values.items() if name not in gone}
        parser.set_defaults(**values)
    namespace, unknown = parser.parse_known_args(rest)
    if unknown:
        parser.error(f"unknown on the command line: {_with_nearest(unknown[0], kind, '--')}")
    names = [field.name for field in fields(kind) if field.init]
    _check_values(kind, {name: getattr(namespace, name) for name in names}, parser)
    try:
        return kind(**{name: getattr(namespace, name) for name in names}), parser
    except Exception as error:  # of TrainingArguments, which checks some of its own, and what it needs
        parser.error(str(error))


def _given(arguments: list[str]) -> list[str]:
    """The names of the options on a command line."""
    return [given.split("=")[0][2:].replace("-", "_") for given in arguments if given.startswith("--")]


def _check_values(kind: type, values: dict[str, Any], parser: argparse.ArgumentParser) -> None:
    """Stops with a message where a value is none of the choices of its option, or is not `Valid` for it."""
    hints = get_type_hints(kind, include_extras=True)
    choices = {field.name: field.metadata.get("choices") for field in fields(kind)}
    for name, value in values.items():
        if value is None:  # only where the type allows it
            continue
        if choices[name] is not None and value not in choices[name]:
            known = [str(choice) for choice in choices[name]]
            parser.error(f"--{name} is {value!r}, expected one of {', '.join(known)}{nearest(str(value), known)}")
        numbers = value if isinstance(value, list) else [value]
        finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
        for valid in _valid(hints[name]):
            if not finite or not valid.holds(value):
                parser.error(f"--{name} is {value!r}, expected {valid.words}")


def _valid(hint: Any) -> list[Valid]:
    """What the annotations in a type hint ask for."""
    if get_origin(hint) is Annotated:
        return [valid for valid in hint.__metadata__ if isinstance(valid, Valid)]
    return [valid for part in get_args(hint) for valid in _valid(part)]


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


def find_recipe(name: str) -> Path:
    """The path of a recipe: `name` itself, or the packaged recipe or study of that name (`imagenet_rednet50`)."""
    for folder in ("training", "ablations"):
        if (packaged := CONFIGS / folder / f"{name}.yaml").is_file() and not Path(name).is_file():
            return packaged
    return Path(name)


def find_architecture(name: str) -> str:
    """The path of the packaged architecture `name` (`rednet-50`), or else `name` itself: a path or a Hub id."""
    packaged = CONFIGS / "models" / f"{name}.json"
    return str(packaged) if packaged.is_file() else name


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
        ValueError, OSError: it is not there, of another model, or for other pictures than RGB; the message names it.
    """
    check_model_name(name)
    config = AutoConfig.from_pretrained(name, **options)
    if config.model_type != "rednet":
        raise ValueError(f"{name} is of the type {config.model_type!r}, expected 'rednet'")
    check_channels(config, name)
    return config


def check_channels(config: PreTrainedConfig, name: str) -> None:
    """Raises ValueError where a model does not take pictures of three channels."""
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError(
            f"{name} has num_channels {config.num_channels}, expected 3: pictures are read as RGB, gray ones with three "
            "equal channels. Set num_channels to 3"
        )


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the script with the message alone where the data or the model are not what was said."""
    try:
        yield
    except (OSError, ValueError, ImportError, DatasetsError, StrictDataclassError) as error:
        raise SystemExit(f"error: {error}") from error


def nearest(name: str, choices: list[str]) -> str:
    found = difflib.get_close_matches(name, choices, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _read(path: Path, config_kind: type, parser: argparse.ArgumentParser) -> dict:
    if not path.is_file():
        known = sorted(
            recipe.stem for folder in ("training", "ablations") for recipe in (CONFIGS / folder).glob("*.yaml")
        )
        parser.error(
            f"--config {path}: there is no such file or packaged recipe{nearest(str(path), known)}; the packaged recipes "
            f"are {', '.join(known)}"
        )
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        parser.error(f"{path} is not YAML: {error}")
    if not isinstance(values, dict):
        parser.error(f"{path} holds {values!r}, expected lines of `option: value`")
    hints, names = get_type_hints(config_kind), {field.name for field in fields(config_kind) if field.init}
    for name in values:
        if name not in names:
            parser.error(f"unknown in {path}: {_with_nearest(str(name), config_kind)}")
    return {name: _convert(path, name, value, hints[name], parser) for name, value in values.items()}


def _convert(path: Path, name: str, value: Any, kind: Any, parser: argparse.ArgumentParser) -> Any:
    """`value` as the type of its option, as far as YAML reads it differently from what was meant."""
    kinds, written, listed = _kinds(kind), value, isinstance(value, list)
    try:
        if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
            value = float(value)  # YAML reads 1e-4 as a string
        elif str in kinds and isinstance(value, int) and type(value) not in kinds:
            value = "no" if value is False else str(value)  # and a bare `no` as False
        elements = _elements(kind) if list in kinds and listed else object
        if elements is float:
            value = [float(element) for element in value]
        if not isinstance(value, kinds) or listed and not all(isinstance(v, elements) for v in value):
            raise ValueError
        if bool not in kinds and any(isinstance(given, bool) for given in (written if listed else [value])):
            raise ValueError  # bool is an int to isinstance
    except (ValueError, TypeError):
        parser.error(f"{path}: {name} is {written!r}, expected {getattr(kind, '__name__', kind)}")
    return value


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a type hint allows."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    return (type(get_args(hint)[0]),) if get_origin(hint) is Literal else (get_origin(hint) or hint,)


def _elements(hint: Any) -> type:
    """Of the lists that a type hint allows."""
    if get_origin(hint) is list:
        return get_args(hint)[0]
    return next(_elements(part) for part in get_args(hint) if list in _kinds(part))


def _with_nearest(unknown: str, kind: type, prefix: str = "") -> str:
    name = unknown.split("=")[0].lstrip("-").replace("-", "_")
    names = [prefix + field.name for field in fields(kind)]
    return unknown + (nearest(prefix + name, names) or " (--help lists what there is)")
