"""The tests of the kernel, for kernel-builder: `nix run .#ci-test`.

They compare with the definition in plain PyTorch.
"""

import pytest
import torch
import torch.nn.functional as F
from involution.layers import RedNetInvolution
from torch import nn

import involution


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def definition(input, kernel, stride=1):
    """Each output pixel is the sum of its window, weighted by its own kernel (arXiv 2103.06255, equation 4)."""
    batch, groups, size, _, height, width = kernel.shape
    windows = F.unfold(input, size, padding=size // 2, stride=stride)
    windows = windows.view(batch, groups, -1, size, size, height, width)
    return (kernel.unsqueeze(2) * windows).sum((3, 4)).reshape(batch, -1, height, width)


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, device=DEVICE).requires_grad_()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size, stride", [(7, 1), (3, 1), (7, 2)])
def test_forward_and_gradients(size, stride, dtype):
    height, width = -(-13 // stride), -(-10 // stride)
    input, kernel = random(2, 32, 13, 10), random(2, 2, size, size, height, width)
    expected = definition(input, kernel, stride)
    output = involution.involution2d(input.to(dtype), kernel.to(dtype), stride)
    assert output.dtype == dtype
    tolerance = 4 * size**2 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (input, kernel), direction)
    grads = torch.autograd.grad(output, (input, kernel), direction.to(dtype))
    torch.testing.assert_close(grads, expected_grads, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.kernels_ci
def test_kernel_generation_in_the_same_pass():
    input, features = random(2, 32, 9, 8), random(2, 6, 9, 8)
    weight, bias = random(2 * 49, 6, 1, 1), random(2 * 49)
    expected = definition(input, F.conv2d(features, weight, bias).view(2, 2, 7, 7, 9, 8))
    output = involution.involution2d_fused(input, features, weight, bias)
    torch.testing.assert_close(output, expected)
    arguments = input, features, weight, bias
    direction = torch.randn_like(expected)
    grads = torch.autograd.grad(output, arguments, direction)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, arguments, direction))


@pytest.mark.kernels_ci
def test_compiles_without_graph_breaks():
    layer = involution.Involution2d(32).to(DEVICE)
    image = random(1, 32, 12, 12, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), layer(image))


class Involution(nn.Module):
    """A module with the attributes that `layers.RedNetInvolution` takes."""

    forward = RedNetInvolution.forward

    def __init__(self, is_pointwise):
        super().__init__()
        self.kernel_size, self.stride, self.is_pointwise = 7, 2, is_pointwise
        self.pooler, self.reduce = nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(32, 8, 1)
        self.span = nn.Conv2d(8, 2 * 49, 1)

    def has_pointwise_span(self):
        return self.is_pointwise

    def generate_kernel(self, hidden_state):
        kernel = self.span(self.reduce(self.pooler(hidden_state)))
        return kernel.view(len(kernel), 2, 7, 7, *kernel.shape[2:])


@pytest.mark.kernels_ci
@pytest.mark.parametrize("is_pointwise", [True, False])
def test_layer(is_pointwise):
    module, image = Involution(is_pointwise).to(DEVICE, torch.float64), random(2, 32, 11, 8)
    torch.testing.assert_close(module(image), definition(image, module.generate_kernel(image), 2))
