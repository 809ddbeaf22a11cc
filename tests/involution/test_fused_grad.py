"""`involution2d_fused_grad` on the CPU: the gradients of an involution and of the 1x1 convolution before it."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import uninitialized
from cases import DTYPES, TOLERANCE, Case, cases, laid_out, num_threads, plain_involution
from involution import Involution2d, extension, involution2d_batch_norm, involution2d_fused, registration


OP = torch.ops.involution.involution2d_fused_grad
PAPER_CASE = Case(3, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")
# Rows longer than a block of pixels, whose last part is shorter than a vector, and groups of several chunks of channels.
WIDE_CASE = Case(1, 1, 40, (2, 261), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")
# Several strips of rows, and several blocks in each.
TALL_CASE = Case(1, 2, 16, (90, 56), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, "channels_last", "contiguous")
STRIDED_CASE = Case(2, 2, 17, (60, 57), (7, 7), (2, 2), (3, 3), (1, 1), torch.bfloat16, "contiguous", "channels_last")


def arguments_of(case: Case, hidden_channels: int) -> list:
    input, _, grad = case.tensors()
    out = case.groups * case.kernel_size[0] * case.kernel_size[1]
    features = laid_out(torch.randn(case.batch, hidden_channels, *case.output_size), case.kernel_layout)
    weight, bias = torch.randn(out, hidden_channels, 1, 1) / hidden_channels**0.5, torch.randn(out)
    return [grad, input, *(t.to(case.dtype) for t in (features, weight, bias)), list(case.kernel_size), *case.window]


def check_gradients(op, case: Case, hidden_channels: int) -> None:
    """Against autograd through the definition in float64."""
    grad, *tensors, kernel_size, stride, padding, dilation = arguments_of(case, hidden_channels)
    exact = [t.double().requires_grad_() for t in tensors]
    kernel = F.conv2d(*exact[1:]).unflatten(1, (case.groups, *kernel_size))
    output = plain_involution(exact[0], kernel, stride, padding, dilation)
    expected = torch.autograd.grad(output, exact, grad.double())

    results = op(grad, *tensors, kernel_size, stride, padding, dilation)
    for name, result, gradient, tensor in zip(("input", "features", "weight", "bias"), results, expected, tensors):
        assert result.dtype == case.dtype and result.shape == tensor.shape
        # The kernel and its gradient may be rounded before they are used, as they are without fusion.
        error = (result.double() - gradient).abs().max() / gradient.abs().max().clamp(min=1e-30)
        assert error <= 4 * TOLERANCE[case.dtype], f"{name}: relative error {error:.2g}"
    for result, layout in zip(results, (case.input_layout, case.kernel_layout)):
        channels_last = layout == "channels_last"
        assert result.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_compiled_kernel_is_what_is_tested():
    assert extension.load("cpu")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("involution::involution2d_fused_grad", "CPU")


@pytest.mark.parametrize("threads", [1, 2, 7])  # With 7, the groups of an image are divided among threads.
def test_matches_definition(threads):
    @given(cases(), st.sampled_from([16, 1, 5, 32, 40]))
    @example(PAPER_CASE, 64)
    @example(WIDE_CASE, 16)
    @example(TALL_CASE, 8)
    @example(STRIDED_CASE, 20)
    @settings(max_examples=80)
    def check(case, hidden_channels):
        check_gradients(OP, case, hidden_channels)

    with num_threads(threads):
        check()


@given(cases(), st.integers(1, 20))
@settings(max_examples=40)
def test_composition_matches_definition(case, hidden_channels):
    """It runs if nothing can be compiled."""
    check_gradients(registration._compose_fused_grad, case, hidden_channels)


@pytest.mark.skipif(not uninitialized.IS_SUPPORTED, reason="needs glibc")
def test_reads_no_uninitialized_memory():
    """Denormal numbers in such memory make the pass many times slower."""
    cases = [
        f"*[torch.ones(1, 16, *{size}) for _ in range(2)], torch.ones(1, 8, *{size}), torch.ones(49, 8, 1, 1), None"
        for size in ((14, 14), (7, 7), (1, 130), (56, 56))
    ]
    call = "torch.ops.involution.involution2d_fused_grad(*arguments, [7, 7], [1, 1], [3, 3], [1, 1])"
    uninitialized.check_not_read(cases, call)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_in_every_run(dtype):
    case = Case(3, 4, 16, (30, 29), (7, 7), (1, 1), (3, 3), (1, 1), dtype, "channels_last", "channels_last")
    arguments = arguments_of(case, 16)
    assert all(torch.equal(first, second) for first, second in zip(OP(*arguments), OP(*arguments)))


def test_opcheck():
    arguments = arguments_of(PAPER_CASE, 8)
    torch.library.opcheck(OP, tuple(arguments))
    arguments[4] = None
    torch.library.opcheck(OP, tuple(arguments))


class Calls(TorchDispatchMode):
    """Counts the calls of `involution2d_fused_grad`."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is OP.default
        return function(*args, **(kwargs or {}))


def batch_normalized(input, features, weight, bias):
    return involution2d_batch_norm(input, features, weight, bias, None, None, kernel_size=3)


def fused(input, features, weight, bias):
    return involution2d_fused(input, features, weight, bias, 3)


@pytest.mark.parametrize("function", [fused, batch_normalized])
def test_backward_calls_it_where_it_is_faster_and_gives_the_same_gradients(function):
    """Not with many hidden channels, nor if a gradient is not needed, nor if the gradients need gradients."""
    torch.manual_seed(0)

    def gradients(tensors, create_graph=False):
        needed = [t for t in tensors if t is not None and t.requires_grad]
        output = function(*tensors)
        with Calls() as calls:
            grads = torch.autograd.grad(output.square().sum(), needed, create_graph=create_graph)
        return calls.count, grads

    for hidden, calls in ((8, 1), (64, 1), (65, 0)):
        shapes = (2, 32, 6, 5), (2, hidden, 6, 5), (18, hidden, 1, 1), (18,)
        tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        count, grads = gradients(tensors)
        assert count == calls
        count, with_graph = gradients(tensors, create_graph=True)
        assert count == 0
        torch.testing.assert_close(grads, with_graph)
        count, without_bias = gradients([*tensors[:3], tensors[3].detach()])
        assert count == calls
        torch.testing.assert_close(without_bias, grads[:3])
        count, without_input = gradients([tensors[0].detach(), *tensors[1:]])
        assert count == 0
        torch.testing.assert_close(without_input, grads[1:])
    for dtype, calls in ((torch.bfloat16, 0), (torch.float16, 1)):  # Products of matrices of float16 are slow.
        assert gradients([torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes])[0] == calls


def test_training_stores_neither_the_kernel_nor_its_gradient():
    layer, input = Involution2d(64), torch.randn(1, 64, 24, 24, requires_grad=True)
    loss = layer(input).sum()
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < 4 * 4 * 49 * 24 * 24


def test_compiled_backward_calls_it():
    tensors = [t.requires_grad_() for t in arguments_of(PAPER_CASE, 8)[1:5]]
    expected = torch.autograd.grad(involution2d_fused(*tensors).square().sum(), tensors)
    compiled = torch.compile(lambda *tensors: involution2d_fused(*tensors).square().sum(), fullgraph=True)
    loss = compiled(*tensors)
    with Calls() as calls:
        torch.testing.assert_close(torch.autograd.grad(loss, tensors), expected)
    assert calls.count == 1


def test_flops_are_those_of_the_kernel_and_all_gradients():
    arguments = arguments_of(PAPER_CASE, 8)
    with FlopCounterMode(display=False) as counter:
        OP(*arguments)
    assert counter.get_total_flops() == 2 * (3 * 14 * 14) * (3 * (4 * 49) * 8 + 2 * 64 * 49)


def test_it_has_no_derivative():
    grad, *rest = arguments_of(PAPER_CASE, 8)
    results = OP(grad.requires_grad_(), *rest)
    with pytest.raises(NotImplementedError, match="involution2d_fused_grad computes first derivatives only"):
        results[0].sum().backward()


def test_empty_batches():
    arguments = arguments_of(PAPER_CASE, 8)
    results = OP(*(t[:0] for t in arguments[:3]), *arguments[3:])
    assert [result.shape for result in results] == [(0, 64, 14, 14), (0, 8, 14, 14), (4 * 49, 8, 1, 1), (4 * 49,)]
    assert results[2].count_nonzero() == results[3].count_nonzero() == 0


@pytest.mark.parametrize(
    "index, words",
    [
        (0, "grad_output has shape [3, 64, 14, 13], expected [3, 64, 14, 14]"),
        (2, "features has shape [3, 8, 14, 13], expected [3, 8, 14, 14]"),
        (3, "weight has shape [195, 8, 1, 1], expected (G * 49, 8, 1, 1)"),
        (4, "bias has shape [195], expected [196]"),
    ],
)
def test_shapes_are_checked(index, words):
    """Calls without the checks in Python must not read out of bounds."""
    arguments = arguments_of(PAPER_CASE, 8)
    arguments[index] = arguments[index][..., :-1] if index in (0, 2) else arguments[index][:-1]
    with pytest.raises((ValueError, RuntimeError), match="involution2d_fused_grad: " + re.escape(words)):
        OP(*arguments)
