"""Loads a RedNet with the class that its configuration names."""

import os

import torch
from transformers import PreTrainedConfig

from . import modeling_rednet
from .modeling_rednet import RedNetPreTrainedModel


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
        ValueError: the model is not a RedNet.
    """
    config, _ = PreTrainedConfig.get_config_dict(folder_or_id)
    if config.get("model_type") != "rednet":
        raise ValueError(f"{folder_or_id} has model_type {config.get('model_type')!r}, expected 'rednet'")
    name = (config.get("architectures") or ["RedNetForImageClassification"])[0]
    if name not in modeling_rednet.__all__:
        raise ValueError(f"{folder_or_id} has architectures {name!r}, expected one of {modeling_rednet.__all__}")
    return getattr(modeling_rednet, name).from_pretrained(folder_or_id, dtype=torch.float32)


__all__ = ["load_model"]
