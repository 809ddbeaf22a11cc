"""`involution2d_fused` on the CPU: generation of the kernel, involution, scale and shift, and ReLU."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import uninitialized
from cases import DTYPES, TOLERANCE, Case, cases, check_fused, num_threads
from involution import Involution2d, extension, involution2d, involution2d_fused, reference


PAPER_CASE = Case(2, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")
# Rows longer than the block of pixels whose kernels are generated together, and groups of several chunks of channels.
WIDE_CASE = Case(1, 1, 40, (2, 300), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")
TALL_CASE = Case(1, 2, 16, (90, 56), (3, 3), (2, 2), (1, 1), (1, 1), torch.bfloat16, "channels_last", "contiguous")


def fused_arguments(
    batch=2, groups=2, group_channels=16, size=(9, 8), kernel_size=(7, 7), hidden=8, stride=1, dtype=torch.float32
):
    """Input, features, weight, bias, scale and shift for "same" padding."""
    torch.manual_seed(0)
    channels, taps = groups * group_channels, kernel_size[0] * kernel_size[1]
    output_size = [-(-n // stride) for n in size]
    accumulation = torch.promote_types(dtype, torch.float32)
    return [
        torch.randn(batch, channels, *size, dtype=dtype),
        torch.randn(batch, hidden, *output_size, dtype=dtype),
        torch.randn(groups * taps, hidden, 1, 1, dtype=dtype),
        torch.randn(groups * taps, dtype=dtype),
        torch.randn(channels, dtype=accumulation),
        torch.randn(channels, dtype=accumulation),
    ]


def test_compiled_kernel_is_what_is_tested():
    assert extension.load("cpu")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("involution::involution2d_fused", "CPU")


@pytest.mark.parametrize("threads", [1, 2])
def test_matches_definition(threads):
    @given(cases(), st.sampled_from([16, 1, 5, 32, 40]), st.booleans(), st.booleans())
    @example(PAPER_CASE, 64, True, True)
    @example(WIDE_CASE, 16, True, True)
    @example(TALL_CASE, 16, False, False)
    @settings(max_examples=150)
    def check(case, hidden, affine, relu):
        check_fused(torch.ops.involution, case, hidden, affine, relu)

    with num_threads(threads):
        check()


@pytest.mark.skipif(not uninitialized.IS_SUPPORTED, reason="needs glibc")
def test_reads_no_uninitialized_memory():
    """Denormal numbers in such memory make the pass 25 times slower."""
    cases = [
        f"torch.ones(1, 16, *{size}), torch.ones(1, 64, *{size}), torch.ones(49, 64, 1, 1), torch.ones(49)"
        for size in ((14, 14), (7, 7), (1, 130))
    ]
    uninitialized.check_not_read(cases, "involution.involution2d_fused(*arguments, 7)")


@given(cases(), st.integers(1, 20), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_plain_form_matches_definition(case, hidden, affine, relu):
    """The reference, which runs if nothing can be compiled."""

    class Plain:
        @staticmethod
        def involution2d_fused(*arguments):
            return reference.involution2d_fused(*arguments)

    case.input_layout = "contiguous"  # the reference does not determine the layout of results
    check_fused(Plain, case, hidden, affine, relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stride, kernel_size", [(1, (3, 3)), (2, (3, 1))])
def test_gradients_of_every_argument(stride, kernel_size, relu):
    arguments = fused_arguments(2, 2, 2, (5, 4), kernel_size, 3, stride, torch.float64)
    arguments = [t.requires_grad_() for t in arguments]

    def f(input, features, weight, bias, scale, shift):
        return involution2d_fused(
            input, features, weight, bias, kernel_size, stride, scale=scale, shift=shift, relu=relu
        )

    assert torch.autograd.gradcheck(f, arguments)
    assert torch.autograd.gradgradcheck(f, arguments)
    for n in range(6):  # each one alone
        alone = [t.detach().requires_grad_(n == m) for m, t in enumerate(arguments)]
        assert torch.autograd.gradcheck(f, alone)


def test_any_arguments_may_require_gradients():
    """Each combination gets the same gradients, and no others."""
    full = fused_arguments(1, 2, 2, (4, 3), (3, 3), 3, 1, torch.float64)
    for tensors in (full, [*full[:3], None, *full[4:]], full[:4], full[:3]):
        given = [n for n, t in enumerate(tensors) if t is not None]

        def gradients(chosen):
            leaves = [t if t is None else t.clone().requires_grad_(n in chosen) for n, t in enumerate(tensors)]
            names = ("input", "features", "weight", "bias", "scale", "shift")
            output = involution2d_fused(**dict(zip(names, leaves)), kernel_size=3, relu=True)
            output.square().sum().backward()
            return {n: leaves[n].grad for n in given}

        every = gradients(given)
        for count in range(1, len(given)):
            for chosen in itertools.combinations(given, count):
                for n, gradient in gradients(chosen).items():
                    assert (gradient is None) == (n not in chosen)
                    if gradient is not None:
                        torch.testing.assert_close(gradient, every[n])


def test_gradients_without_bias_and_affine():
    input, features, weight, *_ = (
        t.requires_grad_() for t in fused_arguments(1, 2, 2, (4, 3), (3, 3), 3, 1, torch.float64)
    )
    assert torch.autograd.gradcheck(lambda *a: involution2d_fused(*a, kernel_size=3), (input, features, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    tensors = [t.requires_grad_() for t in fused_arguments(kernel_size=(3, 3), dtype=dtype)]
    window = ([3, 3], [1, 1], [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.involution.involution2d_fused, (*tensors, True, *window))
    torch.library.opcheck(torch.ops.involution.involution2d_fused, (*tensors[:3], None, None, None, False, *window))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    def f(input, features, weight, bias, scale, shift):
        output = involution2d_fused(input.relu(), features, weight, bias, 3, scale=scale, shift=shift, relu=True)
        return (output + 1).square().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for size in ((8, 8), (11, 6)):
        arguments = fused_arguments(size=size, kernel_size=(3, 3), dtype=torch.float64)
        results = []
        for function in (f, compiled):
            leaves = [t.detach().requires_grad_() for t in arguments]
            value = function(*leaves)
            results.append((value.detach(), *torch.autograd.grad(value, leaves)))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_in_every_run(dtype):
    input, features, weight, bias, scale, shift = fused_arguments(groups=4, size=(30, 29), dtype=dtype)
    kernel = F.conv2d(features, weight, bias).unflatten(1, (4, 7, 7))
    window = ([1, 1], [3, 3], [1, 1])
    o = torch.ops.involution
    for f in (
        lambda: o.involution2d_fused(input, features, weight, bias, scale, shift, True, [7, 7], *window),
        lambda: o.involution2d(input, kernel, *window),
        lambda: o.involution2d_input_grad(input, kernel, [30, 29], *window),
        lambda: o.involution2d_kernel_grad(input, input, 4, [7, 7], *window),
    ):
        assert torch.equal(f(), f())


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast(autocast_dtype):
    arguments = [t.requires_grad_() for t in fused_arguments()]
    input, features, weight, bias, scale, shift = arguments
    with torch.autocast("cpu", dtype=autocast_dtype):
        output = involution2d_fused(input, features.to(autocast_dtype), weight, bias, scale=scale, shift=shift)
    assert output.dtype == autocast_dtype
    output.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in arguments)
    kernel = F.conv2d(features.double(), weight.double(), bias.double()).unflatten(1, (2, 7, 7))
    expected = involution2d(input.double(), kernel) * scale.double()[:, None, None] + shift.double()[:, None, None]
    assert (output.double() - expected).abs().max() / expected.abs().max() < 3 * TOLERANCE[autocast_dtype]


def under_autocast(dtype):
    return torch.autocast("cpu", dtype=dtype) if dtype else torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("backward", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("forward", [None, torch.bfloat16, torch.float16])
def test_backward_ignores_the_autocast_that_it_runs_under(forward, backward):
    """To second order, like a convolution: in autocast, with autocast disabled in it, and enabled again."""

    def convolution(input, weight):
        return F.conv2d(input, weight)

    def fused(*tensors):
        *tensors, scale, shift = tensors
        return involution2d_fused(*tensors, 3, scale=scale, shift=shift, relu=True)

    def bare(*tensors):
        return involution2d_fused(*tensors, None, 3)

    tensors = fused_arguments(1, 2, 2, (4, 3), (3, 3), 3)
    kernel = torch.randn(1, 2, 3, 3, 4, 3)
    functions = {convolution: (tensors[0], torch.randn(4, 4, 3, 3)), involution2d: (tensors[0], kernel)}
    for function, arguments in (functions | {fused: tensors, bare: tensors[:3]}).items():
        results = []
        for dtype in (None, backward):
            leaves = [t.clone().requires_grad_() for t in arguments]
            with under_autocast(dtype):
                with torch.autocast("cpu", enabled=False):
                    with under_autocast(forward):
                        output = function(*leaves)
                gradients = torch.autograd.grad(output.float().square().mean(), leaves, create_graph=True)
                second = torch.autograd.grad(sum(g.square().mean() for g in gradients), leaves)
            assert output.dtype == (forward or torch.float32)
            assert all(g.dtype == torch.float32 for g in (*gradients, *second))
            results.append((*gradients, *second))
        for expected, result in zip(*results):
            error = (result - expected).abs().max() / expected.abs().max()
            assert error < (1e-5 if forward is None else 6 * TOLERANCE[forward])


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_values_propagate(dtype):
    """Also through ReLU, which keeps NaN, and over the padding, whose zero times infinity is NaN."""
    input, features, weight, bias, *_ = fused_arguments(1, 1, 16, (5, 6), hidden=1, dtype=dtype)
    input[0, 3, 2, 2] = float("nan")
    features[0, 0, 0, 0] = float("inf")
    weight = weight.abs()  # the kernel of that pixel is infinite, not NaN
    output = involution2d_fused(input, features, weight, bias, relu=True)
    kernel = F.conv2d(features.double(), weight.double(), bias.double()).unflatten(1, (1, 7, 7))
    expected = involution2d(input.double(), kernel).relu()
    assert expected.isnan().any() and torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.isinf(), expected.isinf())


def test_gradient_of_relu_where_its_result_is_nan():
    """As in PyTorch, it is the gradient of the result, not 0."""
    input, features, weight, bias, *_ = fused_arguments(1, 1, 16, (5, 6), hidden=1)
    input[0, 3, 2, 2] = float("nan")
    input.requires_grad_()
    fused = involution2d_fused(input, features, weight, bias, relu=True)
    separate = involution2d_fused(input, features, weight, bias).relu()
    assert fused.isnan().any()
    torch.testing.assert_close(*[torch.autograd.grad(output.sum(), input) for output in (fused, separate)])


@pytest.mark.parametrize("batch, size", [(0, (5, 4)), (1, (1, 1)), (0, (1, 1))])
def test_empty_batches_and_single_pixels(batch, size):
    arguments = [t.requires_grad_() for t in fused_arguments(batch=batch, size=size, kernel_size=(3, 3))]
    input, features, weight, bias, scale, shift = arguments
    output = involution2d_fused(input, features, weight, bias, 3, scale=scale, shift=shift, relu=True)
    output.sum().backward()
    assert output.shape == input.shape and all(t.grad.shape == t.shape for t in arguments)


def test_flops_are_those_of_convolution_and_involution():
    input, features, weight, *_ = fused_arguments(batch=2, groups=2, size=(9, 8), kernel_size=(3, 3), hidden=8)
    with FlopCounterMode(display=False) as counter:
        involution2d_fused(input, features, weight, kernel_size=3)
    assert counter.get_total_flops() == 2 * (2 * 9 * 8) * (18 * 8 + 32 * 9)


def test_training_keeps_no_kernel():
    """The kernel, three times the size of the activation, is generated again for the backward pass and not saved."""
    layer, input = Involution2d(64), torch.randn(1, 64, 12, 12)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(input).sum().backward()
    assert max(saved) == input.numel() < 4 * 49 * 12 * 12


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"features": torch.zeros(1, 8, 4, 4)}, ValueError, r"features has shape \(1, 8, 4, 4\), expected \(2, 8, 9, 8\)"),
        ({"features": torch.zeros(2, 8, 9)}, ValueError, "features has 3 dimensions"),
        ({"weight": torch.zeros(50, 8, 1, 1)}, ValueError, r"weight has shape \(50, 8, 1, 1\), expected \(G \* 49, 8"),
        ({"weight": torch.zeros(98, 7, 1, 1)}, ValueError, r"weight has shape \(98, 7, 1, 1\)"),
        ({"weight": torch.zeros(3 * 49, 8, 1, 1), "bias": None}, ValueError, "a multiple of the number of groups, 3"),
        ({"bias": torch.zeros(97)}, ValueError, r"bias has shape \(97,\), expected \(98,\)"),
        ({"scale": torch.zeros(31)}, ValueError, r"scale has shape \(31,\), expected \(32,\)"),
        ({"scale": None}, ValueError, "scale is None, expected a tensor because shift is given"),
        ({"shift": torch.zeros(32, dtype=torch.float64)}, TypeError, "shift has dtype torch.float64"),
        ({"features": torch.zeros(2, 8, 9, 8, dtype=torch.float64)}, TypeError, "features has dtype torch.float64"),
        ({"weight": "x"}, TypeError, "weight is str"),
        ({"features": None}, TypeError, "features is NoneType, expected a torch.Tensor"),
        ({"kernel_size": 0}, ValueError, "kernel_size is 0"),
    ],
)  # fmt: skip
def test_errors_name_argument_and_values(changes, error, words):
    names = ("input", "features", "weight", "bias", "scale", "shift")
    with pytest.raises(error, match=words):
        involution2d_fused(**{**dict(zip(names, fused_arguments())), **changes})


def test_operator_called_directly_checks_its_shapes():
    """Calls without the checks in Python, as in an exported program, must not read out of bounds."""
    input, features, weight, bias, scale, shift = fused_arguments()
    window = ([7, 7], [1, 1], [3, 3], [1, 1])
    op = torch.ops.involution.involution2d_fused
    for wrong in (
        (input, features[:, :, 1:], weight, bias, scale, shift),
        (input, features, weight[1:], bias, scale, shift),
        (input, features, weight, bias[1:], scale, shift),
        (input, features, weight, bias, scale[1:], shift),
        (input, features, weight, bias, None, shift),
    ):
        with pytest.raises(
            (ValueError, RuntimeError), match="involution2d_fused: "
        ):  # depends on the release of torch
            op(*wrong, False, *window)
