"""The networks that the benchmarks compare: RedNet-50, two ResNet-50, and a RedNet-50 that unfolds its inputs."""

import copy
import types

import timm
import torch
import torch.nn.functional as F
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.modeling_rednet import RedNetInvolution
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification


OURS, PEERS, UNFOLD = "RedNet-50", ("ResNet-50 of transformers", "ResNet-50 of timm"), "RedNet-50 by unfold"


def networks(device: str, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    models = {
        OURS: RedNetForImageClassification(RedNetConfig(num_labels=1000)),
        PEERS[0]: ResNetForImageClassification(ResNetConfig(num_labels=1000)),
        PEERS[1]: timm.create_model("resnet50"),
    }
    models[UNFOLD] = copy.deepcopy(models[OURS])
    for module in models[UNFOLD].modules():
        if isinstance(module, RedNetInvolution):
            module.forward = types.MethodType(unfold_forward, module)
    return {name: m.to(device, dtype).to(memory_format=torch.channels_last) for name, m in models.items()}


def unfold_forward(self: RedNetInvolution, hidden_state: Tensor) -> Tensor:
    """The forward pass of RedNetInvolution with a copy of the input for each tap."""
    kernel, size = self.generate_kernel(hidden_state), self.kernel_size
    columns = F.unfold(hidden_state, size, padding=size // 2, stride=self.stride)
    columns = columns.view(len(kernel), self.groups, -1, size, size, *kernel.shape[4:])
    return (kernel.unsqueeze(2) * columns).sum((3, 4)).flatten(1, 2)
