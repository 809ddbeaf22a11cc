"""Involution in one and three dimensions, and without a batch, against its definition in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functionalize, hessian, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from cases import DTYPES, TOLERANCE, laid_out, plain_involution
from involution import (
    involution1d,
    involution2d,
    involution2d_batch_norm,
    involution2d_fused,
    involution3d,
    reference,
)


FUNCTIONS = {1: involution1d, 2: involution2d, 3: involution3d}
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Kernel size, stride, padding and dilation in three dimensions; the last ones are those of fewer dimensions.
WINDOW = (2, 3, 2), (2, 1, 2), (1, 2, 1), (1, 2, 1)


def random_pair(sizes, kernel_size, stride, padding, dilation, batch=2, groups=2, channels=4, dtype=torch.float64):
    torch.manual_seed(0)
    outputs = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(sizes, kernel_size, stride, padding, dilation)
    ]
    kernel = torch.randn(batch, groups * math.prod(kernel_size), *outputs, dtype=dtype)
    return torch.randn(batch, channels, *sizes, dtype=dtype), kernel.unflatten(1, (groups, *kernel_size))


def windowed_pair(dimensions, **options):
    window = [list(value[-dimensions:]) for value in WINDOW]
    return *random_pair((4, 3, 5)[-dimensions:], *window, **options), window[1:]


def channels_last(tensor):
    """The same values with the channels, all of a kernel, next to each other."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def test_definition_voxel_by_voxel():
    input, kernel, (stride, padding, dilation) = windowed_pair(3)
    output = reference.involution(input, kernel, stride, padding, dilation)
    expected = torch.zeros_like(output)
    for b, c, *position in itertools.product(*map(range, output.shape)):
        for tap in itertools.product(*map(range, kernel.shape[2:5])):
            source = [i * s + t * d - p for i, s, t, d, p in zip(position, stride, tap, dilation, padding)]
            if all(0 <= n < size for n, size in zip(source, input.shape[2:])):
                expected[(b, c, *position)] += kernel[(b, c // 2, *tap, *position)] * input[(b, c, *source)]
    torch.testing.assert_close(output, expected)


def test_definition_is_that_of_two_dimensions():
    input, kernel, window = windowed_pair(2)
    torch.testing.assert_close(reference.involution(input, kernel, *window), plain_involution(input, kernel, *window))


@st.composite
def windows(draw, dimensions):
    """Sizes, kernel size, stride, padding and dilation whose window fits into the padded input."""
    kernel_size, stride, padding, dilation = (
        draw(st.tuples(*[st.integers(*bounds)] * dimensions)) for bounds in ((1, 4), (1, 3), (0, 4), (1, 3))
    )
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel_size, padding, dilation)]
    return [draw(st.integers(n, n + 5)) for n in least], kernel_size, stride, padding, dilation


@pytest.mark.parametrize("dimensions", [1, 3])
@given(data=st.data())
@settings(max_examples=40)
def test_matches_definition(dimensions, data):
    sizes, *window = data.draw(windows(dimensions))
    dtype, formats = data.draw(st.sampled_from(DTYPES)), data.draw(st.tuples(st.booleans(), st.booleans()))
    groups, group_channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 16]))
    batch = data.draw(st.integers(1, 2))
    input, kernel = random_pair(
        sizes, *window, batch=batch, groups=groups, channels=groups * group_channels, dtype=dtype
    )
    if formats[0]:
        input = channels_last(input)
    if formats[1]:
        kernel = channels_last(kernel.flatten(1, 1 + dimensions)).unflatten(1, kernel.shape[1 : 2 + dimensions])
    tensors = [t.requires_grad_() for t in (input, kernel)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    output = FUNCTIONS[dimensions](*tensors, *window[1:])
    expected = reference.involution(*exact, *window[1:])
    grad = torch.randn_like(output)
    results = output, *torch.autograd.grad(output, tensors, grad)
    expected = expected, *torch.autograd.grad(expected, exact, grad.double())
    for name, result, value in zip(("output", "input gradient", "kernel gradient"), results, expected):
        assert result.dtype == dtype and result.shape == value.shape
        error = (result.double() - value).abs().max() / value.abs().max().clamp(min=1e-30)
        assert error <= TOLERANCE[dtype], f"{name}: relative error {error:.2g}"


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
def test_constant_kernel_is_a_grouped_convolution(dimensions, groups):
    """With one channel for each group, a depthwise one."""
    sizes, kernel_size = (5, 6, 7)[-dimensions:], (3, 1, 5)[-dimensions:]
    input, weight = torch.randn(2, 4, *sizes).double(), torch.randn(groups, 1, *kernel_size).double()
    kernel = weight.view(1, groups, *kernel_size, *[1] * dimensions).expand(2, -1, *[-1] * dimensions, *sizes)
    padding = [k // 2 for k in kernel_size]
    expected = CONVOLUTIONS[dimensions](input, weight.repeat_interleave(4 // groups, 0), padding=padding, groups=4)
    torch.testing.assert_close(FUNCTIONS[dimensions](input, kernel), expected)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_memory_format_of_the_input(dimensions, batch, dtype):
    input, kernel, window = windowed_pair(dimensions, batch=batch, dtype=dtype)
    for tensor, channel_dim in ((input, 1), (channels_last(input), -1)):
        tensor.requires_grad_()
        output = FUNCTIONS[dimensions](tensor, kernel, *window)
        grad = torch.autograd.grad(output.square().sum(), tensor)[0]
        assert output.movedim(1, channel_dim).is_contiguous() and grad.movedim(1, channel_dim).is_contiguous()


@pytest.mark.parametrize("dimensions", [1, 3])
def test_derivatives(dimensions):
    input, kernel, window = windowed_pair(dimensions, batch=1, groups=1, channels=2)
    tensors = [t.requires_grad_() for t in (input, kernel)]

    def function(*tensors):
        return FUNCTIONS[dimensions](*tensors, *window)

    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("transform", ["vmap", "jvp", "hessian", "functionalize"])
def test_transforms(transform):
    input, kernel, window = windowed_pair(3, batch=1, groups=1, channels=2)

    def make(form):
        return {
            "vmap": lambda *t: vmap(lambda *t: form(*t, *window), (0, None))(torch.stack([t[0], t[0].cos()]), t[1]),
            "jvp": lambda *t: jvp(lambda *t: form(*t, *window), t, tuple(x.cos() for x in t)),
            "hessian": lambda *t: hessian(lambda x: (form(x, t[1], *window).sin() * 3).sum())(t[0]),
            "functionalize": functionalize(lambda *t: form(*t, *window)),
        }[transform]

    torch.testing.assert_close(make(involution3d)(input, kernel), make(reference.involution)(input, kernel))


@pytest.mark.parametrize("transform", [None, "jvp"])
def test_compiles_as_one_graph(transform):
    window = (2, 1, 1), (1, 0, 1), (1, 1, 1)
    input, kernel = random_pair((3, 2, 4), (2, 1, 2), *window)

    def function(input, kernel):
        if transform:
            return jvp(lambda *t: involution3d(*t, *window), (input, kernel), (input, kernel))[1]
        return involution3d(input.relu(), kernel * 2, *window).square()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for form in (function, compiled):
        tensors = [t.detach().requires_grad_() for t in (input, kernel)]
        output = form(*tensors)
        results.append((output, *torch.autograd.grad(output.sum(), tensors)))
    torch.testing.assert_close(*results)


class Volumes(torch.nn.Module):
    def forward(self, input, kernel):
        return involution3d(input, kernel)


def test_exports_with_dynamic_sizes():
    def pair(batch, *sizes):
        return random_pair(sizes, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), batch=batch)

    dynamic = torch.export.Dim.DYNAMIC
    shapes = {0: dynamic, 2: dynamic, 3: dynamic, 4: dynamic}, {0: dynamic, 5: dynamic, 6: dynamic, 7: dynamic}
    program = torch.export.export(Volumes(), pair(2, 6, 5, 7), dynamic_shapes=shapes)
    for tensors in (pair(3, 4, 9, 8), pair(2, 11, 6, 5)):
        expected = reference.involution(*tensors, *[[1] * 3] * 3)
        torch.testing.assert_close(program.module()(*tensors), expected)


def test_autocast_sums_in_float32_and_gradients_keep_their_dtype():
    input, kernel = random_pair((9, 5, 4), (9, 3, 3), (1,) * 3, (4, 1, 1), (1,) * 3, channels=16, dtype=torch.float32)
    tensors = [t.requires_grad_() for t in (input, kernel)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = involution3d(*tensors)
        grads = torch.autograd.grad(output.float().square().sum(), tensors)
    assert output.dtype == torch.bfloat16 and [g.dtype for g in grads] == [torch.float32] * 2
    # Only the arguments and the result are rounded.
    rounded = [t.detach().bfloat16().double() for t in tensors]
    expected = reference.involution(*rounded, [1] * 3, [4, 1, 1], [1] * 3)
    assert (output.double() - expected).abs().max() <= TOLERANCE[torch.bfloat16] / 2 * expected.abs().max()


def test_infinite_taps_over_the_padding():
    """Zero times infinity is NaN, as in the definition, on the padding of the depth too."""
    input, kernel = random_pair((3, 4, 4), (3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3)
    kernel[0, 0, 0, 1, 1, 0, 2, 2] = float("inf")
    expected = reference.involution(input, kernel, *[[1] * 3] * 3)
    assert expected.isnan().any()
    torch.testing.assert_close(involution3d(input, kernel), expected, equal_nan=True)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_empty_batches(dimensions):
    input, kernel, window = windowed_pair(dimensions, batch=0)
    tensors = [t.requires_grad_() for t in (input, kernel)]
    output = FUNCTIONS[dimensions](*tensors, *window)
    output.sum().backward()
    assert output.shape == (0, 4, *kernel.shape[-dimensions:])
    assert [t.grad.shape for t in tensors] == [t.shape for t in tensors]


def test_flops_are_two_per_tap_and_channel():
    input, kernel = random_pair((4, 5, 6), (3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3)
    with FlopCounterMode(display=False) as counter:
        involution3d(input.requires_grad_(), kernel.requires_grad_()).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 4 * 4 * 5 * 6) * 27


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_without_a_batch(dimensions, layout):
    input, kernel, window = windowed_pair(dimensions, batch=1)
    input = channels_last(input) if layout == "channels_last" else input
    expected = FUNCTIONS[dimensions](input, kernel, *window)
    tensors = input[0].requires_grad_(), kernel[0].requires_grad_()
    output = FUNCTIONS[dimensions](*tensors, *window)
    torch.testing.assert_close(output, expected[0])
    assert output.stride() == expected[0].stride()
    output.sum().backward()
    assert tensors[0].grad.shape == tensors[0].shape and tensors[1].grad.shape == tensors[1].shape


def test_fused_without_a_batch():
    input, features = torch.randn(1, 4, 5, 6), laid_out(torch.randn(1, 3, 5, 6), "channels_last")
    weight, bias, scale, shift = torch.randn(18, 3, 1, 1), torch.randn(18), torch.randn(4), torch.randn(4)
    rest = weight, bias, 3, 1, None, 1, scale, shift, True
    torch.testing.assert_close(
        involution2d_fused(input[0], features[0], *rest), involution2d_fused(input, features, *rest)[0]
    )


def shaped(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    "function, input, kernel, arguments, words",
    [
        (involution1d, shaped(1, 4, 8), shaped(2, 3, 8), {}, ["input has 3", "kernel has 3", "4 (B, G, K, L')", "3 (G, K, L')"]),
        (involution2d, shaped(4, 8, 8), shaped(1, 2, 3, 3, 8, 8), {}, ["input has 3", "kernel has 6", "3 (C, H, W)", "5 (G, Kh"]),
        (involution3d, shaped(1, 4, 8, 8, 8), shaped(1, 2, 3, 3, 8, 8), {}, ["input has 5", "kernel has 6", "8 (B, G, Kd"]),
        (involution1d, shaped(1, 4, 8), shaped(1, 2, 3, 7), {}, ["kernel has shape (1, 2, 3, 7)", "(1, 2, 3, 8)", "K, L')"]),
        (involution1d, shaped(4, 8), shaped(2, 3, 7), {}, ["kernel has shape (2, 3, 7)", "(2, 3, 8) (G, K, L')"]),
        (involution2d, shaped(4, 8, 8), shaped(2, 3, 3, 8, 7), {}, ["(2, 3, 3, 8, 7)", "(2, 3, 3, 8, 8) (G, Kh"]),
        (involution1d, shaped(1, 4, 8), shaped(1, 3, 3, 8), {}, ["4 channels", "groups, 3"]),
        (involution1d, shaped(1, 4, 8), shaped(1, 2, 2, 8), {}, ["padding is None", "kernel size is 2."]),
        (involution1d, shaped(1, 4, 8), shaped(1, 2, 3, 8), {"stride": (1, 1)}, ["stride is (1, 1)", "a sequence of one"]),
        (involution3d, shaped(1, 4, 3, 3, 3), shaped(1, 2, 3, 3, 3, 3, 3, 3), {"stride": (1, 1)}, ["sequence of three"]),
        (involution3d, shaped(1, 4, 2, 8, 8), shaped(1, 2, 3, 3, 3, 1, 8, 8), {"padding": (0, 1, 1)}, ["depth 2", "least 3"]),
    ],
)  # fmt: skip
def test_errors_name_argument_and_values(function, input, kernel, arguments, words):
    with pytest.raises(ValueError, match=f"^{function.__name__}: ") as raised:
        function(input, kernel, **arguments)
    for word in words:
        assert word in str(raised.value)


def test_fused_names_a_missing_batch():
    with pytest.raises(ValueError, match="input has 4 dimensions and features has 3 dimensions"):
        involution2d_fused(shaped(1, 4, 5, 6), shaped(3, 5, 6), shaped(18, 3, 1, 1), kernel_size=3)
    with pytest.raises(ValueError, match=r"input has shape \(4, 5, 6\), expected a batch \(B, C, H, W\)"):
        involution2d_batch_norm(shaped(4, 5, 6), shaped(3, 5, 6), shaped(18, 3, 1, 1), None, None, None, kernel_size=3)
