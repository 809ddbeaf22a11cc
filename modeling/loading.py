"""Loads a RedNet with the class that its configuration names."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rednet.modeling_rednet import (
    RedNetBackbone,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
    RedNetPreTrainedModel,
)
from safetensors import SafetensorError
from transformers import PreTrainedConfig


CLASSES: dict[str, type[RedNetPreTrainedModel]] = {
    model_class.__name__: model_class
    for model_class in (RedNetModel, RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetBackbone)
}


def load_model(folder_or_id: str | os.PathLike) -> RedNetPreTrainedModel:
    """
    Loads a RedNet of any class, with the first class in `architectures` of its configuration
    (`RedNetForImageClassification` if there is none).

    Args:
        folder_or_id: a folder, or the id of a Hub repository (`user/name`).

    Returns:
        The model in float32 and in evaluation mode.

    Raises:
        OSError: the folder or repository does not exist or holds no model, or the Hub cannot be reached.
        ValueError: the model is not a RedNet, or its weights are damaged.
    """
    config, _ = PreTrainedConfig.get_config_dict(folder_or_id)
    model_class = find_class(config, folder_or_id)
    with naming_damaged_weights(folder_or_id):
        return model_class.from_pretrained(folder_or_id, dtype=torch.float32)


def find_class(config: dict, source: str | os.PathLike) -> type[RedNetPreTrainedModel]:
    """
    Returns the class that `load_model` loads.

    Args:
        config: the content of `config.json`.
        source: where it was read, for the messages.

    Raises:
        ValueError: the model is not a RedNet.
    """
    if config.get("model_type") != "rednet":
        raise ValueError(f"{source} has model_type {config.get('model_type')!r}, expected 'rednet'")
    name = (config.get("architectures") or ["RedNetForImageClassification"])[0]
    if name not in CLASSES:
        raise ValueError(f"{source} has architectures {name!r}, expected one of {list(CLASSES)}")
    return CLASSES[name]


@contextmanager
def naming_damaged_weights(source: str | os.PathLike) -> Iterator[None]:
    """
    For a block that loads the weights of the folder or repository `source`.

    Raises:
        ValueError: they are damaged, for example truncated. The error of safetensors has no name.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights of {source} are damaged: {error}") from error


def read_object(path: Path, name: str | os.PathLike | None = None) -> dict:
    """
    Returns the content of a JSON file, such as `config.json`.

    Args:
        name: what the messages call the file, by default its path.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it is not a JSON file, or contains something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it contains a {type(content).__name__}, expected an object")
    except ValueError as error:
        raise ValueError(f"{name or path} is damaged: {error}") from error
    return content


__all__ = ["load_model"]
