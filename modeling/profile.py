"""Parameters and operations of a model."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """The number of learnable values."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, height: int = 224, width: int = 224) -> int:
    """Multiply-accumulate operations of convolutions, involutions and linear layers for one image of this size.

    Nothing is computed: the model runs on shapes alone. Half of what `torch.utils.flop_counter` counts; biases,
    normalisation, activations and pooling are not in it.

    Args:
        model: takes `pixel_values` (1, C, height, width) with C as `model.config.num_channels`.
        height, width: in pixels.
    """
    fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with fake, torch.no_grad(), FlopCounterMode(display=False) as counter:
            parameter = next(model.parameters())
            shape = (1, model.config.num_channels, height, width)
            model(torch.empty(shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for module, mode in training.items():
            module.training = mode
    return counter.get_total_flops() // 2


__all__ = ["count_macs", "count_parameters"]
