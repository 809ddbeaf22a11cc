"""The kernels that the involutions of a model generate for an image. Needs no package of ours: models may be remote code."""

import re
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel


@torch.no_grad()
def involution_kernels(model: PreTrainedModel, pixel_values: Tensor) -> dict[str, Tensor]:
    """
    Runs the model once and returns the kernel of every involution in it.

    Args:
        model: any RedNet in evaluation mode, with or without head, fused or not, of the package or remote code.
        pixel_values: (B, C, H, W), as the image processor gives them.

    Returns:
        From the names of the involutions (those of `model.named_modules()`), in the order in which they run, to their
        kernels (B, G, K, K, H', W'): G groups of channels, K x K the window, H' x W' the size of the involution's
        output. `involution2d(input, kernel, stride)` with the input of the involution is what it computes.

    Raises:
        ValueError: the model is in training mode, or has no involutions.
    """
    if model.training:  # its BatchNorms would see the batch twice
        raise ValueError("the kernels are read in evaluation mode: call model.eval() first")
    kernels = {}

    def record(name: str, involution: nn.Module, hidden_state: Tensor) -> None:
        # The model itself may never hold the kernel: the operator generates and applies it in one pass. So it is
        # generated here, from the same input.
        features = involution.reduce(involution.pooler(hidden_state))
        kernel_shape = (involution.groups, involution.kernel_size, involution.kernel_size)
        kernels[name] = involution.span(features).unflatten(1, kernel_shape)

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: record(name, module, inputs[0]))
        for name, module in model.named_modules()
        if type(module).__name__ == "RedNetInvolution"  # that of the package, or a class of remote code
    ]
    if not hooks:
        raise ValueError(f"{type(model).__name__} has no involutions, expected a RedNet")
    try:
        model(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return kernels


def by_stage(names: Iterable[str]) -> dict[int, list[str]]:
    """The names of the involutions of each stage, by the stage's number, counted from 1; 0 is the stem."""
    stages: dict[int, list[str]] = {}
    for name in names:
        if found := re.search(r"embedder\.|stages\.(\d+)\.", name):  # others are of a head
            stages.setdefault(int(found[1]) + 1 if found[1] else 0, []).append(name)
    return stages


def seen_picture(pixel_values: Tensor, processor: BaseImageProcessor) -> np.ndarray:
    """The part of the picture that the model saw, as it saw it: (H, W, 3) from 0 to 1, of pixel values (3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixel_values * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
