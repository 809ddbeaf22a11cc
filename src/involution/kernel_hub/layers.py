"""Layers whose `forward` replaces that of a module of the same name.

`kernels.kernelize` and Transformers' `use_kernels` replace it. This file is also the module `layers` of the Kernel Hub
kernel.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ..ops import involution2d, involution2d_fused


class RedNetInvolution(nn.Module):
    """The involutions of the RedNet models: (B, C, H, W) to (B, C, H', W').

    A layer of the Kernel Hub has no state. The annotations are what the module has whose `forward` is replaced.
    """

    can_torch_compile = True
    has_backward = True

    kernel_size: int
    stride: int
    pooler: nn.Module
    reduce: nn.Module
    span: nn.Conv2d
    has_pointwise_span: Callable[[], bool]
    generate_kernel: Callable[[Tensor], Tensor]

    def forward(self, hidden_state: Tensor) -> Tensor:
        if self.has_pointwise_span():  # without storing the kernels
            features = self.reduce(self.pooler(hidden_state))
            span = self.span
            return involution2d_fused(hidden_state, features, span.weight, span.bias, self.kernel_size, self.stride)
        return involution2d(hidden_state, self.generate_kernel(hidden_state), self.stride)
