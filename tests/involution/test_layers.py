"""What `Involution1d`, `Involution2d` and `Involution3d` can be told, against its definition."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from involution import Involution1d, Involution2d, Involution3d, involution2d, reference


LAYERS = {1: Involution1d, 2: Involution2d, 3: Involution3d}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
SIZES = (5, 8, 7)


def image(dimensions, channels=8, batch=2, dtype=torch.float64):
    return torch.randn(batch, channels, *SIZES[-dimensions:], dtype=dtype)


def make_layer(dimensions, *arguments, dtype=torch.float64, **options):
    torch.manual_seed(0)
    options = {"group_channels": 4, "reduction_ratio": 2} | options
    layer = LAYERS[dimensions](8, *arguments, dtype=dtype, **options).eval()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def definition(layer, input, guide=None):
    """The layer with an odd kernel, by plain convolutions and the definition of the operator."""
    dimensions = input.dim() - 2
    convolve, source = CONVOLUTIONS[dimensions], input if guide is None else guide
    if layer.kernel_generator is not None:
        kernel = layer.kernel_generator(source)
    else:
        pooled = source
        if set(layer.stride) != {1}:
            pooled = POOLS[dimensions](source, layer.stride, ceil_mode=True)
        convolution, norm, _ = layer.reduce
        hidden = F.batch_norm(
            convolve(pooled, convolution.weight), *list(norm.state_dict().values())[2:4], norm.weight, norm.bias
        )
        kernel = convolve(hidden.relu(), layer.span.weight, layer.span.bias)
    kernel = kernel.unflatten(1, (layer.groups, -1))
    if layer.kernel_normalization == "softmax":
        kernel = kernel.exp() / kernel.exp().sum(2, keepdim=True)
    elif layer.kernel_normalization == "l2":
        kernel = kernel / kernel.square().sum(2, keepdim=True).sqrt()
    kernel = kernel.unflatten(2, layer.kernel_size)
    if layer.project is not None:
        input = convolve(input, layer.project.weight)
    padding = [d * (k // 2) for d, k in zip(layer.dilation, layer.kernel_size)]
    output = reference.involution(input, kernel, layer.stride, padding, layer.dilation)
    return output if layer.bias is None else output + layer.bias.view(-1, *[1] * dimensions)


OPTIONS = [
    {},
    {"stride": 2},
    {"stride": 3, "dilation": 2, "bias": True},
    {"out_channels": 12},
    {"out_channels": 4, "bias": True, "kernel_normalization": "softmax"},
    {"group_channels": 1, "kernel_normalization": "l2"},
    {"group_channels": 8, "kernel_normalization": "softmax", "stride": 2},
]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_matches_definition(dimensions, options, guided, channels_last):
    layer, input, guide = make_layer(dimensions, 3, **options), image(dimensions), image(dimensions)
    if channels_last:
        input, guide = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (input, guide))
    arguments = (input, guide) if guided else (input,)
    tensors = [t.requires_grad_() for t in arguments] + list(layer.parameters())
    output, expected = layer(*arguments), definition(layer, *arguments)
    torch.testing.assert_close(output, expected)
    grad = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, tensors, grad), torch.autograd.grad(expected, tensors, grad)
    )


@pytest.mark.parametrize("dimensions", [1, 3])
def test_even_kernels_reach_one_further(dimensions):
    """As a convolution with padding="same", which a layer with a constant kernel is equal to."""
    layer, input = make_layer(dimensions, 4, 1, 3, group_channels=8), image(dimensions)
    nn.init.zeros_(layer.span.weight)
    weight = layer.span.bias.view(1, 1, *layer.kernel_size).expand(8, *[-1] * (dimensions + 1))
    expected = CONVOLUTIONS[dimensions](input, weight, padding="same", dilation=3, groups=8)
    torch.testing.assert_close(layer(input), expected)


def test_names_of_the_parameters():
    plain = ["reduce.0.weight", "reduce.1.weight", "reduce.1.bias", "span.weight", "span.bias"]
    for dimensions in (1, 2, 3):
        assert [name for name, _ in make_layer(dimensions).named_parameters()] == plain
        layer = make_layer(dimensions, bias=True, out_channels=4)
        assert {name for name, _ in layer.named_parameters()} == {*plain, "bias", "project.weight"}
        layer = make_layer(dimensions, kernel_generator=nn.Identity())
        assert list(layer.state_dict()) == []


class Generator(nn.Module):
    """From a small picture with other channels to kernels of 2 groups and 3 x 3 taps, at a given size."""

    def __init__(self, channels, size, taps):
        super().__init__()
        self.size, self.convolution = size, nn.Conv2d(channels, taps, 3, padding=1, dtype=torch.float64)

    def forward(self, guide):
        return F.interpolate(self.convolution(guide), self.size)


@pytest.mark.parametrize("normalization", [None, "softmax", "l2"])
def test_kernel_of_another_module_and_tensor(normalization):
    layer = make_layer(2, 3, 2, kernel_generator=Generator(3, (4, 4), 18), kernel_normalization=normalization)
    input, guide = image(2).requires_grad_(), torch.randn(2, 3, 2, 2, dtype=torch.float64).requires_grad_()
    output = layer(input, guide=guide)
    torch.testing.assert_close(output, definition(layer, input, guide))
    output.sum().backward()
    assert guide.grad.abs().sum() > 0 and layer.kernel_generator.convolution.weight.grad.abs().sum() > 0
    torch.testing.assert_close(layer(input[0], guide[0]), output[0])


def test_kernel_generator_does_not_use_the_reduction_ratio():
    layer = Involution2d(6, 3, group_channels=3, reduction_ratio=4, kernel_generator=nn.Conv2d(6, 18, 1))
    assert layer(torch.randn(1, 6, 5, 4)).shape == (1, 6, 5, 4)


@pytest.mark.parametrize("normalization", ["softmax", "l2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalization_in_float32(normalization, dtype):
    """Logits whose exponentials and squares are out of the range of float16, and taps that are all zero."""
    layer = Involution2d(
        4, 3, group_channels=4, kernel_generator=nn.Identity(), kernel_normalization=normalization, dtype=dtype
    )
    kernel = 300 * torch.randn(1, 9, 5, 5).to(dtype)
    kernel[..., 0, 0] = 0
    input = torch.randn(1, 4, 5, 5).to(dtype)
    exact = kernel.float().softmax(1) if normalization == "softmax" else F.normalize(kernel.float(), dim=1)
    expected = involution2d(input, exact.to(dtype).unflatten(1, (1, 3, 3)))
    output = layer(input, kernel)
    assert output.dtype == dtype and output.isfinite().all()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_without_a_batch(dimensions):
    layer, input, guide = make_layer(dimensions, 3, 2), image(dimensions), image(dimensions)
    torch.testing.assert_close(layer(input[1]), layer(input)[1])
    torch.testing.assert_close(layer(input[1], guide[1]), layer(input, guide)[1])


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("normalization", [None, "softmax"])
def test_empty_batches(dimensions, normalization):
    layer = make_layer(dimensions, 3, 2, bias=True, kernel_normalization=normalization)
    output = layer(image(dimensions, batch=0))
    assert output.shape == (0, *layer(image(dimensions)).shape[1:])
    output.sum().backward()
    assert layer.span.weight.grad.eq(0).all()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_bias_and_memory_format_under_autocast(dimensions):
    layer = make_layer(dimensions, 3, bias=True, kernel_normalization="softmax", dtype=torch.float32)
    input = image(dimensions, dtype=torch.float32).movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(input)
    assert output.dtype == torch.bfloat16 and output.movedim(1, -1).is_contiguous()
    exact = definition(copy.deepcopy(layer).double(), input.double())
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=3e-2 * exact.abs().max().item())


@pytest.mark.parametrize("dimensions", [1, 3])
def test_trains_under_compile(dimensions):
    layer = make_layer(dimensions, 3, 2, out_channels=4, bias=True, kernel_normalization="softmax")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input, guide = image(dimensions), image(dimensions)
    expected, output = layer(input, guide), compiled(input, guide)
    torch.testing.assert_close(output, expected)
    parameters = list(layer.parameters())
    grads = [torch.autograd.grad(result.square().sum(), parameters) for result in (output, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"out_channels": 6}, ValueError, "group_channels is 4, expected a divisor of out_channels = 6"),
        ({"out_channels": 0}, ValueError, "group_channels is 4, expected a divisor of out_channels = 0"),
        ({"group_channels": 4.0}, ValueError, "group_channels is 4.0, expected a divisor of channels = 8"),
        ({"reduction_ratio": 3}, ValueError, "reduction_ratio is 3, expected a divisor of channels = 8"),
        ({"kernel_normalization": "max"}, ValueError, "kernel_normalization is 'max', expected None, 'softmax' or 'l2'"),
        ({"kernel_generator": F.relu}, TypeError, "kernel_generator is function, expected a torch.nn.Module"),
        ({"kernel_size": (3, 3)}, ValueError, r"kernel_size is \(3, 3\), expected an int .* a sequence of three"),
    ],
)  # fmt: skip
def test_invalid_options_raise(options, error, words):
    with pytest.raises(error, match=f"^Involution3d: {words}"):
        Involution3d(8, **{"group_channels": 4, "reduction_ratio": 2} | options)


@pytest.mark.parametrize(
    "shapes, words",
    [
        ([(2, 4, 8, 7)], r"input has shape \(2, 4, 8, 7\), expected \(B, 8, H, W\) or \(8, H, W\)"),
        ([(8, 7)], r"input has shape \(8, 7\)"),
        ([(4, 8, 7)], r"input has shape \(4, 8, 7\), expected \(B, 8, H, W\) or \(8, H, W\)"),
        ([(8, 8, 7), (8, 7, 8)], r"guide has shape \(8, 7, 8\), expected that of input, \(8, 8, 7\)"),
        ([(2, 8, 8, 7), (8, 8, 7)], r"guide has shape \(8, 8, 7\), expected that of input, \(2, 8, 8, 7\)"),
        ([(2, 8, 8, 7), (2, 3, 8, 7)], r"guide has shape \(2, 3, 8, 7\)"),
    ],
)
def test_invalid_shapes_raise(shapes, words):
    with pytest.raises(ValueError, match=f"^Involution2d: {words}"):
        Involution2d(8, 3, group_channels=4)(*map(torch.zeros, shapes))


def test_arguments_of_another_type_raise():
    with pytest.raises(TypeError, match="^Involution2d: input is NoneType, expected a torch.Tensor"):
        Involution2d(8, 3, group_channels=4)(None)


def test_a_generated_kernel_of_another_type_raises():
    layer = Involution2d(8, 3, group_channels=4, kernel_generator=nn.MaxPool2d(1, return_indices=True))
    with pytest.raises(
        TypeError, match="^Involution2d: the result of kernel_generator is tuple, expected a torch.Tensor"
    ):
        layer(torch.zeros(1, 8, 7, 6))


def test_a_generated_kernel_of_another_shape_raises():
    layer = Involution2d(8, 3, 2, group_channels=4, kernel_generator=nn.Conv2d(8, 18, 1))
    message = r"kernel_generator returned shape \(1, 18, 7, 6\), expected \(1, 18, 4, 3\)"
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(1, 8, 7, 6))
