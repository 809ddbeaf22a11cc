"""Checks of the models that options name."""

from pathlib import Path
from typing import Any

from rednet import RedNetConfig
from rednet.training.utils.errors import nearest
from transformers import AutoConfig, PreTrainedConfig


def check_model_name(name: str) -> None:
    """Raises ValueError if `name` is a path that does not exist. Otherwise Transformers would ask the Hub for it."""
    path = Path(name)
    if path.exists():
        return
    is_file, is_in_folder = path.suffix == ".json", path.parent.is_dir() and len(path.parts) > 1
    if is_file or is_in_folder or name.count("/") > 1 or name.startswith((".", "/")):
        siblings = [str(sibling) for sibling in path.parent.glob("*")]
        raise ValueError(f"there is no {'file' if is_file else 'folder'} {name}{nearest(name, siblings)}")


def read_config(name: str, **options: Any) -> RedNetConfig:
    """The configuration of a RedNet.

    Args:
        name: a file, a folder or the id of a Hub repository.
        options: values of the configuration to replace.

    Raises:
        ValueError, OSError: it does not exist, belongs to another model family, or expects other images than RGB.
    """
    check_model_name(name)
    config = AutoConfig.from_pretrained(name, **options)
    if config.model_type != "rednet":
        raise ValueError(f"{name} is of the type {config.model_type!r}, expected 'rednet'")
    check_channels(config, name)
    return config


def check_channels(config: PreTrainedConfig, name: str) -> None:
    """Raises ValueError if a model does not expect images of three channels."""
    num_channels = getattr(config, "num_channels", 3)
    if num_channels != 3:
        raise ValueError(
            f"{name} has num_channels {num_channels}, expected 3: images are read as RGB, gray ones with three equal "
            "channels. Set num_channels to 3"
        )
