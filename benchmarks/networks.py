"""The networks that the benchmarks compare: RedNet-50, two ResNet-50, and RedNet-50 with other involutions."""

import copy
import importlib.util
import types
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.modeling_rednet import RedNetInvolution
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from involution.taps import traced_involution2d


OURS, PEERS, UNFOLD = "RedNet-50", ("ResNet-50 of transformers", "ResNet-50 of timm"), "RedNet-50 by unfold"
LOOP = "RedNet-50 by a loop over taps"


def installed_peers() -> tuple[str, ...]:
    """The ResNets of installed packages. Only timm can be missing."""
    return PEERS if importlib.util.find_spec("timm") else PEERS[:1]


def peer(name: str) -> nn.Module:
    if name == PEERS[0]:
        return ResNetForImageClassification(ResNetConfig(num_labels=1000))
    import timm

    return timm.create_model("resnet50")


def networks(device: str, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    models = {
        OURS: RedNetForImageClassification(RedNetConfig(num_labels=1000)),
        **{name: peer(name) for name in PEERS},
    }
    models[UNFOLD] = with_involution(models[OURS], unfold_forward)
    return {name: m.to(device, dtype).to(memory_format=torch.channels_last) for name, m in models.items()}


def with_involution(model: nn.Module, forward: Callable[[RedNetInvolution, Tensor], Tensor]) -> nn.Module:
    """A copy of a RedNet in which `forward` replaces that of every involution."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, RedNetInvolution):
            module.forward = types.MethodType(forward, module)
    return model


def multiplication_forward(self: RedNetInvolution, hidden_state: Tensor) -> Tensor:
    """
    The forward pass of RedNetInvolution with one multiplication, by the tap in the middle, instead of an involution: about
    what a runtime can reach with an operator that takes no longer than reading and writing its tensors. The kernels are
    generated in full. An operator that is fused with their generation can be faster.
    """
    kernel, middle = self.generate_kernel(hidden_state), self.kernel_size // 2
    batch, height, width = kernel.shape[0], kernel.shape[4], kernel.shape[5]
    pixels = hidden_state[:, :, :: self.stride, :: self.stride] if self.stride > 1 else hidden_state
    # Reads each size as an element of a shape, as the exporter needs it.
    output = pixels.reshape(batch, self.groups, -1, height, width) * kernel[:, :, middle, middle].unsqueeze(2)
    return output.reshape(batch, hidden_state.shape[1], height, width)


def loop_forward(self: RedNetInvolution, hidden_state: Tensor) -> Tensor:
    """The forward pass of RedNetInvolution as a loop over taps, which Inductor fuses into one kernel."""
    window = [self.stride] * 2, [self.kernel_size // 2] * 2, [1, 1]
    return traced_involution2d(hidden_state, self.generate_kernel(hidden_state), *window)


def unfold_forward(self: RedNetInvolution, hidden_state: Tensor) -> Tensor:
    """The forward pass of RedNetInvolution with a copy of the input for each tap."""
    kernel, size = self.generate_kernel(hidden_state), self.kernel_size
    columns = F.unfold(hidden_state, size, padding=size // 2, stride=self.stride)
    columns = columns.view(len(kernel), self.groups, -1, size, size, *kernel.shape[4:])
    return (kernel.unsqueeze(2) * columns).sum((3, 4)).flatten(1, 2)
