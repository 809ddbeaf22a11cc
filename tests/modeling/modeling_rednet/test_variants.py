"""The kinds of kernel generation that the paper compares, and the ResNet to compare with."""

import itertools

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification, count_parameters
from rednet.modeling_rednet import RedNetInvolution, RedNetInvolutionLayer


def plain_involution(layer: RedNetInvolution, image: torch.Tensor) -> torch.Tensor:
    """The layer for one image (C, H, W), pixel by pixel."""
    size, stride, (channels, height, width) = layer.kernel_size, layer.stride, image.shape
    pooled = torch.stack(
        [
            image[:, y : y + stride, x : x + stride].mean((1, 2))
            for y, x in itertools.product(range(0, height, stride), range(0, width, stride))
        ]
    ).view(-(-height // stride), -(-width // stride), channels)
    padded = torch.nn.functional.pad(image, [size // 2] * 4)
    output = torch.empty(channels, *pooled.shape[:2], dtype=image.dtype)
    for y, x in itertools.product(*map(range, pooled.shape[:2])):
        features = pooled[y, x]
        if not isinstance(layer.reduce, torch.nn.Identity):
            weight, norm = layer.reduce.convolution.weight, layer.reduce.normalization
            reach = weight.shape[-1] // 2
            features = torch.zeros(weight.shape[0], dtype=image.dtype)
            for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
                if 0 <= y + dy < pooled.shape[0] and 0 <= x + dx < pooled.shape[1]:
                    features += weight[:, :, reach + dy, reach + dx] @ pooled[y + dy, x + dx]
            features = (features - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            features = (features * norm.weight + norm.bias).clamp(min=0)
        kernels = (layer.span.weight[:, :, 0, 0] @ features + layer.span.bias).view(layer.groups, size, size)
        window = padded[:, y * stride : y * stride + size, x * stride : x * stride + size]
        output[:, y, x] = (window.unflatten(0, (layer.groups, -1)) * kernels[:, None]).sum((2, 3)).flatten()
    return output


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("group_channels", [4, None])
@pytest.mark.parametrize("kernel_generation", ["bottleneck", "linear", "neighborhood"])
def test_kernels_are_generated_by_definition(kernel_generation, group_channels, stride):
    torch.manual_seed(0)
    config = RedNetConfig(group_channels=group_channels, kernel_generation=kernel_generation)
    layer = RedNetInvolution(config, channels=8, kernel_size=3, stride=stride).double().eval()
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.1, 1)
    torch.nn.init.normal_(layer.span.weight)
    image = torch.randn(8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(image[None])[0], plain_involution(layer, image), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_generation", ["linear", "neighborhood"])
def test_variants_train_as_their_parts(kernel_generation):
    """In training the layer makes the kernels again in the backward pass: by autograd alone the gradients are these."""
    torch.manual_seed(0)
    config = RedNetConfig(group_channels=4, kernel_generation=kernel_generation)
    layer = RedNetInvolutionLayer(config, channels=8, kernel_size=3, stride=2).double().train()
    image = torch.randn(2, 8, 7, 6, dtype=torch.float64, requires_grad=True)
    inputs, weights = [image, *layer.parameters()], torch.randn(2, 8, 4, 3, dtype=torch.float64)
    found = torch.autograd.grad((layer(image) * weights).sum(), inputs)
    plain = layer.activation(layer.normalization(layer.involution(image)))
    for gradient, expected in zip(found, torch.autograd.grad((plain * weights).sum(), inputs)):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_with_convolutions_it_is_resnet():
    with torch.device("meta"):
        model = RedNetForImageClassification(RedNetConfig(operator_type="convolution", num_labels=1000))
    assert count_parameters(model) == 25_576_264  # timm's resnet50d, ResNet-50 with a stem of three 3x3 convolutions


@pytest.mark.parametrize(
    "changes", [{"kernel_generation": "linear", "group_channels": None}, {"operator_type": "convolution"}]
)
def test_variants_are_saved_and_fused(tmp_path, changes):
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64, 128], depths=[1, 1], num_labels=3, **changes)
    model = RedNetForImageClassification(config).eval()
    images = torch.randn(2, 3, 33, 40)
    model.save_pretrained(tmp_path)
    loaded = RedNetForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(loaded(images).logits, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded.fuse()(images).logits, expected, rtol=1e-4, atol=1e-5)
