"""RedNet without shortcuts: every layer calls its modules one by one, and involution is its definition by unfolding."""

import copy
import types

import torch.nn.functional as F
from rednet.modeling_rednet import (
    RedNetBottleNeckLayer,
    RedNetConvLayer,
    RedNetInvolution,
    RedNetInvolutionLayer,
    RedNetShortCut,
)
from torch import Tensor, nn


def involution(self: RedNetInvolution, input: Tensor) -> Tensor:
    kernel = self.span(self.reduce(self.pooler(input)))
    batch, _, height, width = kernel.shape
    kernel = kernel.reshape(batch, self.groups, 1, self.kernel_size**2, height, width)
    columns = F.unfold(input, self.kernel_size, padding=self.kernel_size // 2, stride=self.stride)
    columns = columns.reshape(batch, self.groups, -1, self.kernel_size**2, height, width)
    return (kernel * columns).sum(3).flatten(1, 2)


def bottleneck(self: RedNetBottleNeckLayer, input: Tensor) -> Tensor:
    residual = self.shortcut(input)
    return self.activation(self.drop_path(self.layer(input)) + residual)


FORWARD = {
    RedNetConvLayer: lambda self, x: self.activation(self.normalization(self.convolution(x))),
    RedNetShortCut: lambda self, x: self.normalization(self.convolution(x)),
    RedNetInvolution: involution,
    RedNetInvolutionLayer: lambda self, x: self.activation(self.normalization(self.involution(x))),
    RedNetBottleNeckLayer: bottleneck,
}


def plain(model: nn.Module) -> nn.Module:
    """A copy of `model`, with the same modules, parameters and hooks, that takes no shortcut."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) in FORWARD:
            module.forward = types.MethodType(FORWARD[type(module)], module)
    return model
