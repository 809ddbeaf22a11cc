"""`involution.compat`, against what each original computes, written here pixel by pixel, with the original's parameters."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from involution import Involution2d, compat
from involution.compat import christoph_reich, idynamic, idynamicdwconv_util, involution_cuda, tasaki_lab
from involution.compat.involution_pytorch import Inv2d


Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, Tensor]


# --- What the originals compute ---


def involution(input: Tensor, kernel: Tensor, stride=(1, 1), padding=(0, 0), dilation=(1, 1)) -> Tensor:
    """(B, C, H, W) and (B, G, Kh, Kw, H', W') -> (B, C, H', W'), one pixel of the output at a time."""
    height, width, groups = *input.shape[2:], kernel.shape[1]
    images, pixels = input.unflatten(1, (groups, -1)), []
    for i, j in product(*map(range, kernel.shape[4:])):
        total = torch.zeros_like(images[..., 0, 0])
        for u, v in product(*map(range, kernel.shape[2:4])):
            y, x = i * stride[0] + u * dilation[0] - padding[0], j * stride[1] + v * dilation[1] - padding[1]
            if 0 <= y < height and 0 <= x < width:
                total = total + kernel[:, :, u, v, i, j, None] * images[..., y, x]
        pixels.append(total)
    return torch.stack(pixels, -1).view(*input.shape[:2], *kernel.shape[4:])


def by_taps(kernel: Tensor, *kernel_size: int) -> Tensor:
    """The channels of a generated kernel are the taps of the first group, of the second, and so on."""
    return kernel.unflatten(1, (-1, *kernel_size))


def convolution(x: Tensor, weights: Weights, name: str, **options) -> Tensor:
    function = F.conv3d if x.dim() == 5 else F.conv2d
    return function(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)


def batch_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    parts = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(weights[f"{name}.{part}"] for part in parts))


def authors(x: Tensor, weights: Weights, kernel_size: int, stride: int, dilation: int = 1) -> Tensor:
    pooled = F.avg_pool2d(x, stride)
    hidden = batch_norm(convolution(pooled, weights, "conv1.conv"), weights, "conv1.bn").relu()
    kernel = by_taps(convolution(hidden, weights, "conv2.conv"), kernel_size, kernel_size)
    padding = dilation * (kernel_size - 1) // 2
    return involution(x, kernel, (stride, stride), (padding, padding), (dilation, dilation))


def dwnet(x: Tensor, weights: Weights) -> Tensor:
    hidden = batch_norm(convolution(x, weights, "conv1.0"), weights, "conv1.1").relu()
    return involution(x, by_taps(convolution(hidden, weights, "conv2.0"), 3, 3), padding=(1, 1))


def restoration(x: Tensor, weights: Weights, guide: Tensor | None = None) -> Tensor:
    hidden = convolution(x if guide is None else guide, weights, "conv1.0")
    hidden = convolution(hidden, weights, "conv1.1", padding=1, groups=hidden.shape[1])
    return involution(x, by_taps(convolution(hidden, weights, "conv2.0"), 3, 3), padding=(1, 1))


def matrix_product(x: Tensor, weights: Weights, stride: int) -> Tensor:
    """`Inv2d` with K = 3 and 16 channels a group: (rows x columns) times (rows x columns), summed over the taps."""
    kernel = convolution(convolution(F.avg_pool2d(x, stride), weights, "reduce"), weights, "span")
    kernel, images, side = by_taps(kernel, 3, 3), x.unflatten(1, (-1, 16)), kernel.shape[2]
    pixels = []
    for i, j in product(range(side), range(side)):
        total = torch.zeros_like(images[..., 0, 0])
        for u, v, column in product(range(3), range(3), range(side)):
            row_of_x, column_of_x = column * stride + u - 1, j * stride + v - 1
            if 0 <= row_of_x < x.shape[2] and 0 <= column_of_x < x.shape[3]:
                total = total + kernel[:, :, u, v, i, column, None] * images[..., row_of_x, column_of_x]
        pixels.append(total)
    return torch.stack(pixels, -1).view(*x.shape[:2], side, side)


def reich_features(x: Tensor, weights: Weights, stride) -> Tensor:
    pool = F.avg_pool3d if x.dim() == 5 else F.avg_pool2d
    hidden = convolution(pool(x, stride), weights, "reduce_mapping")
    return convolution(batch_norm(hidden, weights, "sigma_mapping.0").relu(), weights, "span_mapping")


def reich_2d(x: Tensor, weights: Weights, kernel_size, stride=(1, 1), padding=(1, 1), dilation=(1, 1)) -> Tensor:
    kernel = by_taps(reich_features(x, weights, stride), *kernel_size)
    image = convolution(x, weights, "initial_mapping") if "initial_mapping.weight" in weights else x
    return involution(image, kernel, stride, padding, dilation)


def reich_3d(x: Tensor, weights: Weights, kernel_size, stride, padding, size) -> Tensor:
    """Tap k of pixel l is tap `f % K` of window `f // K`, with f = k * L + l and paddings in the order (W, H, D)."""
    pooled = F.adaptive_avg_pool3d(x, size) if padding[0] != padding[2] else x
    kernel = reich_features(pooled, weights, stride).flatten(2)
    image = convolution(x, weights, "initial_mapping")
    padded = F.pad(image, (padding[0],) * 2 + (padding[1],) * 2 + (padding[2],) * 2)
    counts = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], kernel_size, stride)]
    windows, taps = list(product(*map(range, counts))), list(product(*map(range, kernel_size)))
    images, pixels = padded.unflatten(1, (kernel.shape[1] // len(taps), -1)), []
    kernel = kernel.unflatten(1, (-1, len(taps)))
    for pixel in range(len(windows)):
        total = torch.zeros_like(images[..., 0, 0, 0])
        for k in range(len(taps)):
            window, tap = divmod(k * len(windows) + pixel, len(taps))
            d, h, w = (i * s + u for i, s, u in zip(windows[window], stride, taps[tap]))
            total = total + kernel[:, :, k, pixel, None] * images[..., d, h, w]
        pixels.append(total)
    return torch.stack(pixels, -1).view(*image.shape[:2], *size)


# --- The parameters of the originals ---


def norm(name: str, channels: int) -> Shapes:
    shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def weight_and_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def authors_shapes(channels: int, kernel_size: int, groups: int) -> Shapes:
    hidden = channels // 4
    shapes = {"conv1.conv.weight": (hidden, channels, 1, 1), **norm("conv1.bn", hidden)}
    return {**shapes, **weight_and_bias("conv2.conv", kernel_size**2 * groups, hidden, 1, 1)}


def restoration_shapes(hidden: int, bias: bool = True) -> Shapes:
    """For 16 channels in 4 groups and K = 3."""
    shapes = {
        **weight_and_bias("conv1.0", hidden, 16, 1, 1),
        **weight_and_bias("conv1.1", hidden, 1, 3, 3),
        **weight_and_bias("conv2.0", 36, hidden, 1, 1),
    }
    return {name: shape for name, shape in shapes.items() if bias or name.endswith("weight")}


def reich_shapes(inputs: int, outputs: int, hidden: int, span: int, bias: bool = False, pixel=(1, 1)) -> Shapes:
    shapes = norm("sigma_mapping.0", hidden)
    if inputs != outputs:
        shapes |= weight_and_bias("initial_mapping", outputs, inputs, *pixel)
    shapes |= weight_and_bias("reduce_mapping", hidden, inputs, *pixel)
    shapes |= weight_and_bias("span_mapping", span, hidden, *pixel)
    return {name: shape for name, shape in shapes.items() if bias or "mapping.bias" not in name}


def random_weights(shapes: Shapes) -> Weights:
    """A checkpoint of the original."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64) / 2
        weights[name] = value.abs() + 0.5 if name.endswith("running_var") else value
    return weights


# --- The comparison ---

CASES = {
    "authors, 7x7": (
        lambda: involution_cuda.involution(32, 7, 1),
        authors_shapes(32, 7, 2),
        (2, 32, 6, 5),
        lambda x, w: authors(x, w, 7, 1),
    ),
    "authors, stride": (
        lambda: compat.involution(channels=16, kernel_size=3, stride=2),
        authors_shapes(16, 3, 1),
        (2, 16, 6, 4),
        lambda x, w: authors(x, w, 3, 2),
    ),
    "authors, dilation": (
        lambda: compat.involution(16, 3, 1, dilation=2),
        authors_shapes(16, 3, 1),
        (1, 16, 6, 5),
        lambda x, w: authors(x, w, 3, 1, 2),
    ),
    "authors, one group of 24 channels": (
        lambda: compat.involution(24, 3, 1),
        authors_shapes(24, 3, 1),
        (1, 24, 4, 5),
        lambda x, w: authors(x, w, 3, 1),
    ),
    "authors, even kernel and odd sizes": (
        lambda: compat.involution(16, 4, 2),
        authors_shapes(16, 4, 1),
        (1, 16, 5, 7),
        lambda x, w: authors(x, w, 4, 2),
    ),
    "DemystifyLocalViT": (
        lambda: idynamic.IDynamicDWConv(16, 3, 4),
        {
            **weight_and_bias("conv1.0", 4, 16, 1, 1),
            **norm("conv1.1", 4),
            **weight_and_bias("conv2.0", 36, 4, 1, 1),
        },
        (2, 16, 4, 5),
        dwnet,
    ),
    "DLGSANet": (
        lambda: idynamicdwconv_util.IDynamicDWConv(16, kernel_size=3, group_channels=4),
        restoration_shapes(4),
        (2, 16, 4, 5),
        restoration,
    ),
    "DLGSANet without bias": (
        lambda: idynamicdwconv_util.IDynamicDWConv(16, 3, 4, bias=False),
        restoration_shapes(4, bias=False),
        (1, 16, 4, 5),
        restoration,
    ),
    "involution-pytorch": (
        lambda: compat.Inv2d(channels=32, kernel_size=3, stride=1),
        {**weight_and_bias("reduce", 16, 32, 1, 1), **weight_and_bias("span", 18, 16, 1, 1)},
        (2, 32, 4, 4),
        lambda x, w: matrix_product(x, w, 1),
    ),
    "involution-pytorch, stride": (
        lambda: Inv2d(16, 3, 2, group_ch=16, red_ratio=4),
        {**weight_and_bias("reduce", 4, 16, 1, 1), **weight_and_bias("span", 9, 4, 1, 1)},
        (1, 16, 8, 8),
        lambda x, w: matrix_product(x, w, 2),
    ),
    "Reich, defaults": (
        lambda: christoph_reich.Involution2d(in_channels=4, out_channels=8),
        reich_shapes(4, 8, 8, 49),
        (1, 4, 5, 4),
        lambda x, w: reich_2d(x, w, (7, 7), padding=(3, 3)),
    ),
    "Reich, all arguments": (
        lambda: christoph_reich.Involution2d(6, 6, None, (3, 5), 1, 2, 3, (1, 2), (1, 4), True, unused=0),
        reich_shapes(6, 6, 2, 30, bias=True),
        (2, 6, 4, 5),
        lambda x, w: reich_2d(x, w, (3, 5), padding=(1, 4), dilation=(1, 2)),
    ),
    "Reich, stride": (
        lambda: christoph_reich.Involution2d(4, 8, stride=2, kernel_size=2, padding=0),
        reich_shapes(4, 8, 8, 4),
        (1, 4, 7, 6),
        lambda x, w: reich_2d(x, w, (2, 2), (2, 2), (0, 0)),
    ),
    "Reich, 3-D": (
        lambda: christoph_reich.Involution3d(4, 6, kernel_size=3, padding=1, groups=2),
        reich_shapes(4, 6, 6, 54, pixel=(1, 1, 1)),
        (1, 4, 3, 4, 2),
        lambda x, w: reich_3d(x, w, (3, 3, 3), (1, 1, 1), (1, 1, 1), (3, 4, 2)),
    ),
    "Reich, 3-D, stride": (
        lambda: christoph_reich.Involution3d(4, 6, stride=2, kernel_size=2, padding=0, reduce_ratio=2),
        reich_shapes(4, 6, 3, 8, pixel=(1, 1, 1)),
        (2, 4, 4, 6, 4),
        lambda x, w: reich_3d(x, w, (2, 2, 2), (2, 2, 2), (0, 0, 0), (2, 3, 2)),
    ),
    "Reich, 3-D, other paddings": (
        lambda: christoph_reich.Involution3d(4, 6, kernel_size=3, padding=(1, 1, 0), force_shape_match=True),
        reich_shapes(4, 6, 6, 27, pixel=(1, 1, 1)),
        (1, 4, 4, 3, 4),
        lambda x, w: reich_3d(x, w, (3, 3, 3), (1, 1, 1), (1, 1, 0), (4, 3, 2)),
    ),
    "Tasaki Lab": (
        lambda: tasaki_lab.Involution2d(4, 6, 3, 2, 1, 1, 2, True, None, 3),
        reich_shapes(4, 6, 2, 18, bias=True),
        (1, 4, 6, 4),
        lambda x, w: reich_2d(x, w, (3, 3), (2, 2)),
    ),
}


@pytest.mark.parametrize("make, shapes, size, definition", CASES.values(), ids=CASES)
def test_checkpoints_give_the_results_of_the_original(
    make: Callable[[], nn.Module],
    shapes: Shapes,
    size: tuple[int, ...],
    definition: Callable[[Tensor, Weights], Tensor],
):
    """The keys are those of the original, and outputs and gradients those of its definition."""
    weights, layer = random_weights(shapes), make().double().eval()
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == shapes
    layer.load_state_dict(weights, strict=True)
    names, parameters = zip(*layer.named_parameters())
    wanted = [weights[name].requires_grad_() for name in names]
    input = torch.randn(size, dtype=torch.float64, requires_grad=True)
    expected, output = definition(input, weights), layer(input)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(output, [input, *parameters], direction),
        torch.autograd.grad(expected, [input, *wanted], direction),
    )


@pytest.mark.parametrize("name", [name for name in CASES if "3-D" not in name and "7x7" not in name])
def test_gradcheck(name):
    make, shapes, size, _ = CASES[name]
    layer = make().double().eval()
    input = torch.randn(size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, input, fast_mode=True)


def test_a_kernel_from_another_image():
    weights = random_weights(restoration_shapes(2))
    layer = idynamicdwconv_util.IDynamic(16, 3, 4).double()
    layer.load_state_dict(weights, strict=True)
    image, guide = torch.randn(2, 1, 16, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(image, guide), restoration(image, weights, guide))


# --- The functions ---


@pytest.mark.parametrize("module", [compat, involution_cuda, idynamic, idynamicdwconv_util])
def test_the_function_has_both_names(module):
    assert module._idynamic_cuda is involution_cuda._involution_cuda
    assert {"_idynamic_cuda"} <= set(module.__all__)


@pytest.mark.parametrize(
    "stride, padding, dilation, size", [(1, 1, 1, (4, 5)), (2, [1, 2], (1, 2), (2, 3)), (1, 0, 1, (2, 3))]
)
def test_the_function_adds_a_bias(stride, padding, dilation, size):
    input = torch.randn(2, 4, 4, 5, dtype=torch.float64)
    kernel = torch.randn(2, 2, 3, 3, *size, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    pairs = [(value, value) if isinstance(value, int) else value for value in (stride, padding, dilation)]
    expected = involution(input, kernel, *pairs)
    output = compat._involution_cuda(input, kernel, stride=stride, padding=padding, dilation=dilation)
    torch.testing.assert_close(output, expected)
    output = compat._idynamic_cuda(input, kernel, bias, stride, padding, dilation)
    torch.testing.assert_close(output, expected + bias[:, None, None])
    inputs = [tensor.requires_grad_() for tensor in (input, kernel, bias)]
    assert torch.autograd.gradcheck(lambda *args: compat._involution_cuda(*args, stride, padding, dilation), inputs)


def test_memory_formats_that_the_original_reads_in_the_wrong_order():
    """Input and kernel in channels-last, and the gradient of a sum, which is one number for all pixels."""
    input = torch.randn(2, 4, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    kernel = torch.randn(2, 18, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    gradients = []
    for function in (involution, lambda *args: compat._idynamic_cuda(*args, padding=1)):
        arguments = {"padding": (1, 1)} if function is involution else {}
        output = function(input, kernel.view(2, 2, 3, 3, 6, 5), **arguments)
        gradients.append([output, *torch.autograd.grad(output.sum(), [input, kernel])])
    torch.testing.assert_close(*gradients)


def test_sizes_at_which_the_original_reads_outside_of_the_kernel():
    """With stride 2 and 5 rows, it takes a kernel for 2 rows to compute 3."""
    with pytest.raises(ValueError, match=r"kernel has shape .* expected \(1, 1, 3, 3, 3, 2\)"):
        compat._involution_cuda(torch.randn(1, 4, 5, 4), torch.randn(1, 1, 3, 3, 2, 2), stride=2, padding=1)


# --- What the originals refuse, or compute by chance ---


def test_the_authors_layer_takes_every_size():
    """As Involution2d, with the same checkpoint."""
    weights = random_weights(authors_shapes(16, 3, 1))
    layer, ours = compat.involution(16, 3, 2).double().eval(), Involution2d(16, 3, 2, dtype=torch.float64).eval()
    layer.load_state_dict(weights)
    ours.load_state_dict(weights)
    input = torch.randn(2, 16, 7, 5, dtype=torch.float64)
    assert layer(input).shape == (2, 16, 4, 3)
    torch.testing.assert_close(layer(input), ours(input))


def test_the_authors_layer_begins_with_the_values_of_convmodule():
    """Normal, with a variance of 2 / (output channels), and biases of zero."""
    torch.manual_seed(0)
    layer = compat.involution(256, 7, 1)
    for convolution in (layer.conv1.conv, layer.conv2.conv):
        weight = convolution.weight.detach()
        assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.05)
        assert weight.abs().max() > 3 * weight.std()  # uniform values end at 1.7
    assert layer.conv1.conv.bias is None and not layer.conv2.conv.bias.any()
    assert (layer.conv1.bn.weight == 1).all() and not layer.conv1.bn.bias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_authors_layer_trains_under_autocast(dtype):
    """The original has no kernels of 16 bits."""
    torch.manual_seed(0)
    layer = compat.involution(32, 7, 2).to(memory_format=torch.channels_last)
    exact = compat.involution(32, 7, 2).double()
    exact.load_state_dict(layer.state_dict())
    input = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = layer(input)
    output.sum().backward()
    exact(input.double()).sum().backward()
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    for name, parameter in exact.named_parameters():
        difference = layer.get_parameter(name).grad - parameter.grad
        assert difference.norm() <= tolerance * parameter.grad.norm().clamp(min=1), name


def test_one_kernel_for_all_pixels():
    """3 x 3 pixels with stride 2 and K = 7: pooling leaves one pixel, and the output has 2 x 2."""
    weights = random_weights(reich_shapes(4, 4, 4, 49))
    layer = christoph_reich.Involution2d(4, 4, stride=2).double().eval()
    layer.load_state_dict(weights)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    kernel = reich_features(x[:, :, :2, :2], weights, 2).expand(-1, -1, 2, 2)
    expected = involution(x, by_taps(kernel, 7, 7), (2, 2), (3, 3))
    torch.testing.assert_close(layer(x), expected)


def test_force_shape_match():
    """Without it, the default padding fits no kernel but 7 x 7."""
    weights = random_weights(reich_shapes(4, 4, 4, 9))
    layer = christoph_reich.Involution2d(4, 4, kernel_size=3, force_shape_match=True).double().eval()
    layer.load_state_dict(weights)
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    kernel = by_taps(reich_features(F.adaptive_avg_pool2d(x, (7, 8)), weights, 1), 3, 3)
    torch.testing.assert_close(layer(x), involution(x, kernel, padding=(3, 3)))
    layer.force_shape_match = False
    with pytest.raises(ValueError, match=r"generates kernels for \(3, 4\) pixels, but its output has \(7, 8\)"):
        layer(x)


def test_another_sigma_mapping():
    layer = christoph_reich.Involution2d(4, 4, sigma_mapping=nn.Sequential(nn.GroupNorm(2, 4), nn.GELU())).eval()
    assert {name for name in layer.state_dict() if "sigma" in name} == {
        "sigma_mapping.0.weight",
        "sigma_mapping.0.bias",
    }
    assert layer(torch.randn(1, 4, 6, 6)).shape == (1, 4, 6, 6)


def test_the_running_statistics_of_reich():
    """BatchNorm with a momentum of 0.3, of the input that is not projected."""
    layer = christoph_reich.Involution2d(4, 8).train()
    x = torch.randn(2, 4, 6, 6)
    layer(x)
    mean = convolution(x, dict(layer.named_parameters()), "reduce_mapping").mean((0, 2, 3))
    torch.testing.assert_close(layer.sigma_mapping[0].running_mean, 0.3 * mean)


def halved(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output / 2


@pytest.mark.parametrize("changed", ["conv2", "conv2.conv"])
def test_hooks_of_the_last_convolution_are_called(changed):
    layer, input = compat.involution(16, 3, 1).eval(), torch.randn(1, 16, 5, 5)
    expected = layer(input) / 2
    layer.get_submodule(changed).register_forward_hook(halved)
    torch.testing.assert_close(layer(input), expected)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: compat.involution(8, 3, 1), "channels is 8, expected at least 16"),
        (lambda: compat.involution(35, 3, 1), "multiple of channels // 16 = 2"),
        (lambda: idynamic.IDynamicDWConv(16, 3, 5), "group_channels is 5, expected a divisor of channels = 16"),
        (lambda: idynamicdwconv_util.IDynamicDWConv(16, 4, 4), "kernel_size is 4, expected an odd number"),
        (lambda: Inv2d(24, 3, 1), "group_ch is 16, expected a divisor of channels = 24"),
        (lambda: Inv2d(16, 3, 1)(torch.randn(1, 16, 4, 5)), "expected a square image"),
        (lambda: Inv2d(16, 3, 2)(torch.randn(1, 16, 5, 5)), "multiple of the stride, 2"),
        (lambda: christoph_reich.Involution2d(4, 6, groups=4), "out_channels is 6, expected a multiple of groups = 4"),
        (lambda: christoph_reich.Involution2d(4, 4, stride=(1, 1, 1)), r"stride is \(1, 1, 1\), expected an int >= 1"),
        (lambda: christoph_reich.Involution3d(4, 4)(torch.randn(4, 8, 8, 8)), "has 4 dimensions, expected 5"),
        (
            lambda: christoph_reich.Involution3d(4, 4, kernel_size=3, dilation=2, padding=2)(
                torch.randn(1, 4, 4, 4, 4)
            ),
            "ignores the dilation",
        ),
    ],
)
def test_errors_name_what_was_given_and_expected(call, words):
    with pytest.raises(ValueError, match=words):
        call()
