"""Which weights are trained, with which learning rate and weight decay, and by which optimizer."""

from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
from rednet import RedNetBackbone, RedNetModel
from rednet.training.options.finetune import FinetuneConfig
from rednet.training.options.optimization import OptimizationOptions
from torch import nn


def backbone_parts(model: nn.Module) -> list[nn.Module]:
    """Stem and stages of the RedNet in a classifier, a segmentation model or a detector."""
    backbone = next(module for module in model.modules() if isinstance(module, (RedNetModel, RedNetBackbone)))
    return [backbone.embedder, *backbone.encoder.stages]


def freeze(model: nn.Module, frozen_stages: int) -> list[nn.Module]:
    """Freezes the stem and the first `frozen_stages` stages, or nothing if it is -1, and returns them.

    Raises:
        ValueError: the model has fewer stages.
    """
    parts = backbone_parts(model)
    stages = len(parts) - 1
    if not -1 <= frozen_stages <= stages:
        raise ValueError(f"--frozen_stages is {frozen_stages}, expected -1 (nothing) to {stages}, the model's stages")
    frozen = parts[: frozen_stages + 1]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def layer_groups(model: nn.Module, config: OptimizationOptions | FinetuneConfig) -> list[dict]:
    """Parameter groups of what is trained: the head has the learning rate, each part before it `layer_decay` times that
    of the next."""
    parts = [list(part.parameters()) for part in backbone_parts(model)]
    in_backbone = {id(parameter) for part in parts for parameter in part}
    head = [parameter for parameter in model.parameters() if id(parameter) not in in_backbone]
    groups = []
    for distance, parameters in enumerate([head, *reversed(parts)]):
        rate = config.learning_rate * config.layer_decay**distance
        part_groups = parameter_groups(parameters, config.weight_decay, config.no_decay_on_norm_and_bias)
        groups += [{**group, "lr": rate} for group in part_groups]
    return groups


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, no_decay_on_norm_and_bias: bool
) -> list[dict]:
    """Weight decay on all parameters, as in the paper, or only on those with more than one dimension, which excludes
    BatchNorm and biases. Frozen parameters are in no group."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    excluded = [p for p in trained if p.ndim <= 1 and no_decay_on_norm_and_bias]
    decayed = [p for p in trained if p.ndim > 1 or not no_decay_on_norm_and_bias]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": excluded, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict], config: OptimizationOptions) -> torch.optim.Optimizer:
    """The optimizer of the options. LAMB and Muon have the defaults of timm: LAMB limits the norm of all gradients to 1,
    and Muon updates BatchNorm, biases and other parameters that are no matrices as AdamW does."""
    given: dict[str, Any] = {"betas": config.opt_betas and tuple(config.opt_betas), "eps": config.opt_eps}
    given = {name: value for name, value in given.items() if value is not None}
    momentum: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov and config.momentum > 0}
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, rate, **momentum)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, rate, **given)
    if config.optimizer == "lamb":
        return timm.optim.Lamb(groups, rate, **given)
    return timm.optim.Muon(groups, rate, **momentum, **given)
