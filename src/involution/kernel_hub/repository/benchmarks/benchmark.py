"""Involution at the sizes of RedNet-50, compared with plain PyTorch: `kernels benchmark FOLDER`."""

import torch
import torch.nn.functional as F
from kernels.benchmark import Benchmark


class InvolutionBenchmark(Benchmark):
    """Each workload is the forward pass of the 7x7 involution of one stage at 224 x 224.

    The kernel is given, or generated from features.
    """

    seed = 0

    def make(self, channels: int, size: int, batch: int = 8) -> None:
        self.groups = channels // 16
        self.input = torch.randn(batch, channels, size, size, device=self.device)
        self.features = torch.randn(batch, channels // 4, size, size, device=self.device)
        self.weight = torch.randn(self.groups * 49, channels // 4, 1, 1, device=self.device) / channels
        self.bias = torch.randn(self.groups * 49, device=self.device)

    def generate(self) -> torch.Tensor:
        return F.conv2d(self.features, self.weight, self.bias).unflatten(1, (self.groups, 7, 7))

    def apply(self) -> None:
        self.out = self.kernel.involution2d(self.input, self.given)

    def generate_and_apply(self) -> None:
        self.out = self.kernel.involution2d_fused(self.input, self.features, self.weight, self.bias)

    def definition(self, kernel: torch.Tensor) -> torch.Tensor:
        windows = F.unfold(self.input, 7, padding=3)
        windows = windows.view(len(kernel), self.groups, -1, 7, 7, *kernel.shape[-2:])
        return (kernel.unsqueeze(2) * windows).sum((3, 4)).view(self.input.shape)

    def setup_stage1(self) -> None:
        self.make(64, 56)
        self.given = self.generate()

    def benchmark_stage1(self) -> None:
        self.apply()

    def verify_stage1(self) -> torch.Tensor:
        return self.definition(self.given)

    def setup_stage1_generated(self) -> None:
        self.make(64, 56)

    def benchmark_stage1_generated(self) -> None:
        self.generate_and_apply()

    def verify_stage1_generated(self) -> torch.Tensor:
        return self.definition(self.generate())

    def setup_stage3_generated(self) -> None:
        self.make(256, 14)

    def benchmark_stage3_generated(self) -> None:
        self.generate_and_apply()

    def verify_stage3_generated(self) -> torch.Tensor:
        return self.definition(self.generate())
