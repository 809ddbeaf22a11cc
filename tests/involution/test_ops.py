"""The operator on the CPU, compiled and as reference, against its definition in float64."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import uninitialized
from cases import DTYPES, TOLERANCE, Case, cases, check_operators, num_threads, plain_involution
from involution import extension, involution2d, reference, show_config


ONES = [1, 1]
RESNET_CASE = Case(2, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")


def random_pair(batch=2, groups=2, group_channels=16, size=(9, 8), kernel_size=(7, 7), dtype=torch.float32):
    """Input and kernel for "same" padding and stride 1."""
    case = Case(
        batch, groups, group_channels, size, kernel_size, (1, 1), (kernel_size[0] // 2, kernel_size[1] // 2), (1, 1),
        dtype, "contiguous", "contiguous",
    )  # fmt: skip
    return case.tensors()[:2]


def test_compiled_kernels_are_what_is_tested():
    assert extension.load("cpu"), show_config()
    assert torch._C._dispatch_has_kernel_for_dispatch_key("involution::involution2d", "CPU")


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_matches_definition(threads):
    @given(cases())
    @example(RESNET_CASE)
    @settings(max_examples=150)
    def check(case):
        check_operators(torch.ops.involution, case)

    with num_threads(threads):
        check()


# Windows that are wider than a vector, rows and channels that end within one, and more channels than are packed together.
@pytest.mark.parametrize(
    "groups, group_channels, size, kernel_size, stride, dilation",
    [
        (40, 1, (9, 8), (7, 7), (1, 1), (1, 1)),
        (37, 1, (11, 19), (3, 3), (2, 2), (1, 1)),
        (21, 2, (8, 19), (3, 5), (2, 1), (1, 1)),
        (5, 4, (10, 37), (9, 9), (1, 2), (1, 1)),
        (3, 4, (6, 20), (8, 4), (1, 1), (1, 1)),
        (2, 3, (23, 33), (5, 17), (1, 1), (1, 1)),
        (9, 1, (12, 25), (2, 3), (2, 3), (2, 3)),
        (9, 2, (12, 35), (7, 16), (1, 3), (1, 2)),
        (8, 1, (3, 1), (3, 1), (1, 1), (1, 1)),
        (70, 1, (5, 5), (1, 1), (1, 1), (1, 1)),
        (70, 1, (4, 6), (5, 5), (1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layouts", [("channels_last",) * 2, ("contiguous",) * 2, ("contiguous", "channels_last")])
def test_small_groups(groups, group_channels, size, kernel_size, stride, dilation, dtype, layouts):
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel_size, dilation))
    case = Case(2, groups, group_channels, size, kernel_size, stride, padding, dilation, dtype, *layouts)
    check_operators(torch.ops.involution, case)


@pytest.mark.skipif(not uninitialized.IS_SUPPORTED, reason="needs glibc")
def test_small_groups_read_no_uninitialized_memory():
    cases = []
    for layout, dtype in itertools.product(["contiguous_format", "channels_last"], [torch.float32, torch.bfloat16]):
        image = f"dtype={dtype}).to(memory_format=torch.{layout})"
        kernel = f"torch.ones(1, 13 * 49, 7, 11, {image}.unflatten(1, (13, 7, 7))"
        cases.append(f"torch.ones(1, 13, 7, 11, {image}, {kernel}")
    uninitialized.check_not_read(cases, "involution.involution2d(*arguments)")


@given(cases())
@settings(max_examples=60)
def test_reference_matches_definition(case):
    ops = SimpleNamespace(
        involution2d=reference.involution2d,
        involution2d_input_grad=reference.involution2d_input_grad,
        involution2d_kernel_grad=reference.involution2d_kernel_grad,
    )
    case.input_layout = "contiguous"  # the reference does not determine the layout of results
    check_operators(ops, case)


def test_worked_example_of_the_paper():
    """C=32, K=3, G=2: the sum over the 9 taps of kernel (B, 2, 1, 9, H, W) times unfolded input (B, 2, 16, 9, H, W)."""
    input, kernel = random_pair(groups=2, kernel_size=(3, 3), dtype=torch.float64)
    unfolded = torch.nn.functional.unfold(input, 3, padding=1).view(2, 2, 16, 9, 9, 8)
    expected = (kernel.view(2, 2, 1, 9, 9, 8) * unfolded).sum(3).view(2, 32, 9, 8)
    torch.testing.assert_close(involution2d(input, kernel), expected, rtol=1e-13, atol=1e-13)


def test_constant_kernel_is_a_depthwise_convolution():
    input = torch.randn(2, 32, 11, 9, dtype=torch.float64)
    weight = torch.randn(2, 1, 5, 3, dtype=torch.float64)
    kernel = weight.view(1, 2, 5, 3, 1, 1).expand(2, 2, 5, 3, 11, 9)
    expected = torch.nn.functional.conv2d(input, weight.repeat_interleave(16, 0), padding=(2, 1), groups=32)
    torch.testing.assert_close(involution2d(input, kernel), expected)


@pytest.mark.parametrize(
    "stride, dilation, kernel_size", [(1, 1, (3, 3)), (2, 1, (3, 5)), (1, 2, (2, 3)), (2, 3, (1, 2))]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_to_second_order(stride, dilation, kernel_size, layout):
    case = Case(
        2, 2, 2, (4, 3), kernel_size, (stride,) * 2, (2, 3), (dilation,) * 2, torch.float64, layout, layout
    )  # fmt: skip
    input, kernel, _ = case.tensors()
    arguments = (input.requires_grad_(), kernel.requires_grad_())

    def f(a, b):
        return involution2d(a, b, stride, (2, 3), dilation)

    assert torch.autograd.gradcheck(f, arguments)
    assert torch.autograd.gradgradcheck(f, arguments)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(layout, dtype):
    case = Case(2, 2, 16, (6, 7), (3, 3), (2, 1), (1, 1), (1, 1), dtype, layout, layout)
    input, kernel, grad = (t.detach().requires_grad_() for t in case.tensors())
    ops, window = torch.ops.involution, case.window
    torch.library.opcheck(ops.involution2d, (input, kernel, *window))
    torch.library.opcheck(ops.involution2d_input_grad, (grad, kernel, [6, 7], *window))
    torch.library.opcheck(ops.involution2d_kernel_grad, (grad, input, 2, [3, 3], *window))


@pytest.mark.parametrize("layout, dynamic", [("contiguous", True), ("channels_last", False)])
def test_compiles_as_one_graph(layout, dynamic):
    def f(a, b):
        return (involution2d(a.relu(), b * 2, stride=2) + 1).square().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for size in ((8, 8), (11, 6)):
        case = Case(2, 2, 16, size, (3, 3), (2, 2), (1, 1), (1, 1), torch.float64, layout, layout)
        results = []
        for function in (f, compiled):
            input, kernel = (t.detach().requires_grad_() for t in case.tensors()[:2])
            value = function(input, kernel)
            results.append((value.detach(), *torch.autograd.grad(value, (input, kernel))))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)])
def test_autocast(dtypes, autocast_dtype):
    input, kernel = random_pair()
    input = input.to(dtypes[0]).requires_grad_()
    kernel = kernel.to(dtypes[1]).requires_grad_()
    with torch.autocast("cpu", dtype=autocast_dtype):
        output = involution2d(input, kernel)
    assert output.dtype == autocast_dtype
    output.float().sum().backward()
    assert input.grad.dtype == dtypes[0] and kernel.grad.dtype == dtypes[1]
    expected = plain_involution(input.double(), kernel.double(), ONES, [3, 3], ONES)
    error = (output.double() - expected).abs().max() / expected.abs().max()
    # Sums of 49 products whose factors are both rounded.
    assert error < 2 * TOLERANCE[autocast_dtype]


def test_gradients_keep_their_dtype_under_autocast():
    """A part of a network that runs in float32 has float32 gradients, even if backward runs under autocast."""
    input, kernel = (t.requires_grad_() for t in random_pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            output = involution2d(input, kernel)
        grads = torch.autograd.grad(output.square().sum(), (input, kernel))
    exact_input, exact_kernel = (t.detach().double().requires_grad_() for t in (input, kernel))
    exact = plain_involution(exact_input, exact_kernel, ONES, [3, 3], ONES).square().sum()
    for grad, expected in zip(grads, torch.autograd.grad(exact, (exact_input, exact_kernel))):
        torch.testing.assert_close(grad.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_autocast_leaves_float64_alone():
    input, kernel = random_pair(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert involution2d(input, kernel).dtype == torch.float64
        with pytest.raises(
            TypeError, match="kernel has dtype torch.float32, expected the dtype of input, torch.float64"
        ):
            involution2d(input, kernel.float())


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data())
@settings(max_examples=20)
def test_non_finite_values_propagate(dtype, data):
    """Also over the padding, whose zero times infinity is NaN, as in the definition."""
    input, kernel = random_pair(batch=1, groups=1, size=(5, 6), dtype=dtype)
    for tensor in (input, kernel):
        for value in (float("inf"), float("nan")):
            if data.draw(st.booleans()):
                tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = value
    grad = torch.ones_like(input)
    grad[0, 0, data.draw(st.integers(0, 4)), 0] = float("inf")

    window = (ONES, [3, 3], ONES)
    exact_input, exact_kernel = (t.double().requires_grad_() for t in (input, kernel))
    exact = plain_involution(exact_input, exact_kernel, *window)
    grad_input, grad_kernel = torch.autograd.grad(exact, (exact_input, exact_kernel), grad.double())
    ops = torch.ops.involution
    for result, expected in (
        (ops.involution2d(input, kernel, *window), exact),
        (ops.involution2d_input_grad(grad, kernel, [5, 6], *window), grad_input),
        (ops.involution2d_kernel_grad(grad, input, 1, [7, 7], *window), grad_kernel),
    ):
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())


@pytest.mark.parametrize("batch, size", [(0, (5, 4)), (1, (1, 1)), (3, (1, 1)), (0, (1, 1))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batches_and_single_pixels(batch, size, dtype):
    input, kernel = (t.requires_grad_() for t in random_pair(batch=batch, size=size, dtype=dtype))
    output = involution2d(input, kernel)
    output.sum().backward()
    expected = plain_involution(input.double(), kernel.double(), ONES, [3, 3], ONES)
    assert output.shape == input.shape and input.grad.shape == input.shape and kernel.grad.shape == kernel.shape
    torch.testing.assert_close(output.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_expanded_gradients_are_read_in_place():
    """The strides of the gradient of `sum()` are all zero."""
    input, kernel = (t.requires_grad_() for t in random_pair(dtype=torch.float64))
    grads = torch.autograd.grad(involution2d(input, kernel).sum(), (input, kernel))
    exact = torch.autograd.grad(plain_involution(input, kernel, ONES, [3, 3], ONES).sum(), (input, kernel))
    torch.testing.assert_close(grads, exact)


def test_same_padding_with_dilation():
    input, kernel = random_pair(kernel_size=(3, 5), dtype=torch.float64)
    expected = plain_involution(input, kernel, ONES, [2, 6], [2, 3])
    torch.testing.assert_close(involution2d(input, kernel, dilation=(2, 3)), expected)


def test_flops_are_two_per_tap_and_channel():
    input, kernel = (t.requires_grad_() for t in random_pair(batch=2, groups=2, size=(9, 8), kernel_size=(3, 3)))
    with FlopCounterMode(display=False) as counter:
        involution2d(input, kernel).sum().backward()
    forward = 2 * (2 * 32 * 9 * 8) * 9
    assert counter.get_total_flops() == 3 * forward


def shaped(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    "input, kernel, arguments, error, words",
    [
        (shaped(1, 32, 8), shaped(1, 2, 3, 3, 8, 8), {}, ValueError, ["input", "3 dimensions", "4"]),
        (shaped(1, 32, 8, 8), shaped(1, 18, 8, 8), {}, ValueError, ["kernel", "4 dimensions", "6"]),
        (shaped(1, 32, 8, 8), shaped(1, 5, 3, 3, 8, 8), {}, ValueError, ["input", "32 channels", "the number of groups, 5"]),
        (shaped(1, 32, 8, 8), shaped(1, 0, 3, 3, 8, 8), {}, ValueError, ["input", "32 channels", "the number of groups, 0"]),
        (shaped(1, 32, 8, 8), shaped(2, 2, 3, 3, 8, 8), {}, ValueError, ["kernel", "(2, 2, 3, 3", "(1, 2, 3, 3"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 7, 8), {}, ValueError, ["kernel", "7, 8)", "8, 8)"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8), {"stride": 2}, ValueError, ["kernel", "8, 8)", "4, 4)"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 2, 3, 8, 8), {}, ValueError, ["padding", "None", "2 x 3"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8), {"stride": 0}, ValueError, ["stride", "0", ">= 1"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8), {"dilation": (1, 2, 3)}, ValueError, ["dilation", "(1, 2, 3)"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8), {"padding": -1}, ValueError, ["padding", "-1", ">= 0"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8), {"stride": 2**31}, ValueError, ["stride", "< 2**31"]),
        (shaped(1, 32, 2, 8), shaped(1, 2, 3, 3, 8, 8), {"padding": 0}, ValueError, ["input has height 2", "at least 3"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8), {"padding": "same"}, ValueError, ["padding", "'same'"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8).double(), {}, TypeError, ["kernel", "float64", "float32"]),
        (shaped(1, 32, 8, 8).int(), shaped(1, 2, 3, 3, 8, 8).int(), {}, TypeError, ["input", "int32", "float32"]),
        (shaped(1, 32, 8, 8).to_sparse(), shaped(1, 2, 3, 3, 8, 8), {}, TypeError, ["input", "sparse_coo", "torch.strided"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8).to_sparse(), {}, TypeError, ["kernel", "sparse_coo", "torch.strided"]),
        (shaped(1, 32, 8, 8), [1.0], {}, TypeError, ["kernel", "list", "Tensor"]),
        (None, shaped(1, 2, 3, 3, 8, 8), {}, TypeError, ["input is NoneType, expected a torch.Tensor"]),
        (shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8, device="meta"), {}, ValueError, ["kernel", "meta", "cpu"]),
    ],
)  # fmt: skip
def test_errors_name_argument_and_values(input, kernel, arguments, error, words):
    with pytest.raises(error) as raised:
        involution2d(input, kernel, **arguments)
    for word in words:
        assert word in str(raised.value)


# Which of the two an error of the stable ABI becomes depends on the release of torch.
def test_operators_called_directly_check_their_shapes():
    """Calls of torch.ops, or from C++, must not read out of bounds either."""
    ops, window = torch.ops.involution, (ONES, [1, 1], ONES)
    input, kernel = shaped(1, 32, 8, 8), shaped(1, 2, 3, 3, 8, 8)
    with pytest.raises((ValueError, RuntimeError), match="kernel has shape"):
        ops.involution2d(input, kernel[:, :, :, :, :7], *window)
    with pytest.raises((ValueError, RuntimeError), match="grad_output has shape"):
        ops.involution2d_input_grad(input[:, :, :7], kernel, [8, 8], *window)
    with pytest.raises((ValueError, RuntimeError), match="grad_output has shape"):
        ops.involution2d_kernel_grad(input[:, :, :7], input, 2, [3, 3], *window)
    with pytest.raises((ValueError, RuntimeError), match="stride"):
        ops.involution2d(input, kernel, [0, 1], [1, 1], ONES)
    with pytest.raises((ValueError, RuntimeError), match="padding"):
        ops.involution2d(input, kernel, ONES, [2**61, 1], ONES)
    with pytest.raises((ValueError, RuntimeError), match="window"):
        ops.involution2d(input[:, :, :1], kernel, ONES, [0, 1], ONES)
    with pytest.raises((ValueError, RuntimeError), match="dtype"):
        ops.involution2d(input, kernel.double(), *window)
