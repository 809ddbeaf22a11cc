"""`involution2d_batch_norm` against the composition of its parts."""

import pytest
import torch
import torch.nn.functional as F
from rednet.profile import peak_bytes
from torch import Tensor
from torch.func import grad, jvp

from cases import TOLERANCE, plain_involution
from involution import involution2d_batch_norm


NAMES = ("input", "features", "weight", "bias", "gamma", "beta")


def make_arguments(stride=1, kernel_size=(3, 3), dtype=torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Input, features, weight, bias, gamma and beta; running mean and variance."""
    torch.manual_seed(0)
    size, taps = [-(-n // stride) for n in (5, 4)], kernel_size[0] * kernel_size[1]
    shapes = (2, 4, 5, 4), (2, 3, *size), (2 * taps, 3, 1, 1), (2 * taps,), (4,), (4,)
    statistics = [torch.randn(4, dtype=dtype), torch.rand(4, dtype=dtype) + 0.5]
    return [torch.randn(shape, dtype=dtype) for shape in shapes], statistics


def apply(tensors, statistics, kernel_size=3, stride=1, **options) -> Tensor:
    input, features, weight, bias, gamma, beta = tensors
    return involution2d_batch_norm(
        input, features, weight, bias, *statistics, gamma, beta, kernel_size, stride, **options
    )


def compose(tensors, statistics, kernel_size=(3, 3), stride=1, momentum=0.1, eps=1e-5) -> Tensor:
    """In plain PyTorch, for odd kernels."""
    input, features, weight, bias, gamma, beta = tensors
    kernel = F.conv2d(features, weight, bias).unflatten(1, (-1, *kernel_size))
    padding = [k // 2 for k in kernel_size]
    output = plain_involution(input, kernel, [stride] * 2, padding, [1, 1])
    return F.batch_norm(output, *statistics, gamma, beta, True, momentum, eps)


@pytest.mark.parametrize("absent", [(), ("bias",), ("gamma", "beta"), ("statistics",)], ids=str)
@pytest.mark.parametrize("stride, kernel_size", [(1, (3, 3)), (2, (3, 1))])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_matches_the_composition(memory_format, stride, kernel_size, absent):
    tensors, statistics = make_arguments(stride, kernel_size)
    tensors[:2] = [t.to(memory_format=memory_format) for t in tensors[:2]]
    tensors = [None if name in absent else t for name, t in zip(NAMES, tensors)]
    results = []
    for function in (apply, compose):
        leaves = [t if t is None else t.clone().requires_grad_() for t in tensors]
        running = [None, None] if "statistics" in absent else [t.clone() for t in statistics]
        output = function(leaves, running, kernel_size, stride, momentum=0.3, eps=1e-3)
        grads = torch.autograd.grad((output.sin() * 3).sum(), [t for t in leaves if t is not None])
        results.append((output, running, grads))
    torch.testing.assert_close(results[0], results[1])


def test_gradients_to_second_order():
    tensors, statistics = make_arguments()

    def f(*tensors):
        return apply(tensors, [t.clone() for t in statistics])

    leaves = [t.requires_grad_() for t in tensors]
    assert type(f(*leaves).grad_fn).__name__ == "_NormalizedInvolutionBackward"
    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves)
    for n in range(len(leaves)):  # each alone
        assert torch.autograd.gradcheck(f, [t.detach().requires_grad_(n == m) for m, t in enumerate(leaves)])


def test_saves_neither_kernel_nor_input_of_the_batch_norm():
    tensors, statistics = make_arguments(kernel_size=(7, 7))
    leaves = [t.requires_grad_() for t in tensors]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = apply(leaves, statistics, 7)
    assert {t.data_ptr() for t in saved if t.numel() > 4} == {t.data_ptr() for t in leaves[:4]}
    assert output.data_ptr() not in {t.data_ptr() for t in saved}


@pytest.mark.parametrize("hidden, kernels", [(4, 0), (100, 1)])  # With few hidden channels, it computes in blocks.
def test_backward_holds_neither_the_kernel_nor_its_gradient_or_one_of_them(hidden, kernels):
    shapes = (2, 16, 24, 24), (2, hidden, 24, 24), (49, hidden, 1, 1), (49,), (16,), (16,)
    leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    output = apply(leaves, [torch.zeros(16), torch.ones(16)], 7)
    peak = peak_bytes(lambda: torch.autograd.grad(output.sum(), leaves, retain_graph=True), "cpu")
    kernel_bytes, images = 2 * 49 * 24 * 24 * 4, 2 * (3 * 16 + 2 * hidden) * 24 * 24 * 4
    assert kernels * kernel_bytes < peak < kernels * kernel_bytes + images


def test_empty_batch():
    tensors, statistics = make_arguments()
    tensors = [t[:0] for t in tensors[:2]] + tensors[2:]
    leaves = [t.requires_grad_() for t in tensors]
    output = apply(leaves, statistics)
    output.sum().backward()
    assert output.shape == (0, 4, 5, 4) and all(t.grad.count_nonzero() == 0 for t in leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    tensors, statistics = make_arguments(dtype=torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast("cpu", dtype=dtype):
        output = apply(leaves, statistics)
    assert output.dtype == dtype
    output.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves)
    exact = compose([t.detach().double() for t in leaves], [t.double() for t in make_arguments()[1]])
    assert (output.double() - exact).abs().max() / exact.abs().max() < 4 * TOLERANCE[dtype]


def test_backward_ignores_the_autocast_that_it_runs_under():
    tensors, statistics = make_arguments(dtype=torch.float32)
    grads = []
    for enabled in (False, True):
        leaves = [t.clone().requires_grad_() for t in tensors]
        output = apply(leaves, [t.clone() for t in statistics])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(output.sin().sum(), leaves))
    assert all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.mark.parametrize("transform", ["grad", "jvp", "compile"])
def test_transforms_run_the_composition(transform):
    tensors, statistics = make_arguments()
    make = {
        "grad": lambda f: grad(lambda *t: f(*t).sin().sum(), tuple(range(6))),
        "jvp": lambda f: lambda *t: jvp(f, t, tuple(x.cos() for x in t)),
        "compile": lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"),
    }[transform]
    running = [[t.clone() for t in statistics] for _ in range(2)]
    result = make(lambda *t: apply(t, running[0]))(*tensors)
    expected = make(lambda *t: compose(t, running[1]))(*tensors)
    torch.testing.assert_close((result, running[0]), (expected, running[1]))


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"gamma": torch.zeros(3)}, ValueError, r"gamma has shape \(3,\), expected \(4,\)"),
        (
            {"running_mean": torch.zeros(4).half()},
            TypeError,
            "running_mean has dtype torch.float16, expected torch.float32 for",
        ),
        ({"beta": "x"}, TypeError, "beta is str"),
        ({"weight": None}, TypeError, "weight is NoneType, expected a torch.Tensor"),
        ({"features": torch.zeros(1, 3, 5, 4)}, ValueError, r"features has shape \(1, 3, 5, 4\)"),
        ({"input": torch.zeros(1, 4, 1, 1), "features": torch.zeros(1, 3, 1, 1)}, ValueError, "a single value"),
    ],
)
def test_errors_name_argument_and_values(changes, error, words):
    tensors, (mean, variance) = make_arguments(dtype=torch.float32)
    arguments = {**dict(zip(NAMES, tensors)), "running_mean": mean, "running_var": variance, "kernel_size": 3}
    with pytest.raises(error, match=f"involution2d_batch_norm: .*{words}"):
        involution2d_batch_norm(**arguments | changes)
