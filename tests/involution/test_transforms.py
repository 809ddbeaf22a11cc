"""The operator and the layer under `torch.func` and in forward mode, against the definition in plain PyTorch."""

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from cases import TOLERANCE, plain_involution
from involution import Involution2d, involution2d, involution2d_fused


WINDOW = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
PAIR = "involution2d"
FUSED = "involution2d_fused"


def apply(name, *tensors):
    if name == PAIR:
        return involution2d(*tensors, **WINDOW)
    *tensors, scale, shift = tensors
    return involution2d_fused(*tensors, 3, scale=scale, shift=shift, relu=True, **WINDOW)


def define(name, input, *tensors):
    if name == PAIR:
        return plain_involution(input, *tensors, *WINDOW.values())
    features, weight, bias, scale, shift = tensors
    kernel = F.conv2d(features, weight, bias).unflatten(1, (2, 3, 3))
    output = plain_involution(input, kernel, *WINDOW.values())
    return (output * scale[:, None, None] + shift[:, None, None]).relu()


def arguments(name, dtype=torch.float64):
    torch.manual_seed(0)
    channels, output = 4, (2, 4)
    input = torch.randn(2, channels, 3, 4, dtype=dtype)
    if name == PAIR:
        return input, torch.randn(2, 2, 3, 3, *output, dtype=dtype)
    shapes = (2, 3, *output), (18, 3, 1, 1), (18,), (channels,), (channels,)
    return input, *(torch.randn(shape, dtype=dtype) for shape in shapes)


def loss_of(function, name):
    return lambda *tensors: (function(name, *tensors).sin() * 3).sum()


def of_all(transform, name, count):
    """Returns a function that applies `transform`, in all arguments, to the operator or its definition."""
    numbers = tuple(range(count))
    return {
        "grad": lambda f: grad(loss_of(f, name), numbers),
        "vjp": lambda f: lambda *t: vjp(lambda *t: f(name, *t), *t)[1](f(name, *t) + 1),
        "jvp": lambda f: lambda *t: jvp(lambda *t: f(name, *t), t, tuple(x.cos() for x in t)),
        "jacrev": lambda f: jacrev(lambda *t: f(name, *t), numbers),
        "jacfwd": lambda f: jacfwd(lambda *t: f(name, *t), numbers),
        "hessian": lambda f: hessian(loss_of(f, name), numbers),
        "vmap": lambda f: lambda *t: vmap(lambda *t: f(name, *t))(*(torch.stack([x, x.cos()]) for x in t)),
    }[transform]


@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian"])
@pytest.mark.parametrize("name", [PAIR, FUSED])
def test_transforms_in_every_argument(name, transform):
    tensors = arguments(name)
    make = of_all(transform, name, len(tensors))
    torch.testing.assert_close(make(apply)(*tensors), make(define)(*tensors))


@pytest.mark.parametrize("order", ["values", "gradients", "tangents"])
@pytest.mark.parametrize("name", [PAIR, FUSED])
def test_vmap_over_any_arguments(name, order):
    tensors = arguments(name)
    subsets = [
        dims for dims in itertools.product((None, 0, -1), repeat=len(tensors)) if any(d is not None for d in dims)
    ]
    make = {
        "values": lambda f: lambda *t: f(name, *t),
        "gradients": lambda f: grad(loss_of(f, name), tuple(range(len(tensors)))),
        "tangents": lambda f: lambda *t: jvp(lambda *t: f(name, *t), t, t)[1],
    }[order]
    for dims in subsets[:: 1 if name == PAIR else 37]:
        stacked = [t if d is None else torch.stack([t, t.cos(), t + 1], d) for t, d in zip(tensors, dims)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "performance drop": one call for each element
            result = vmap(make(apply), dims)(*stacked)
        torch.testing.assert_close(result, vmap(make(define), dims)(*stacked))


def test_nested_vmap():
    input, kernel = arguments(PAIR)
    inputs, kernels = torch.stack([input, input.cos()]), torch.stack([kernel, kernel.cos(), kernel + 1])
    result = vmap(vmap(lambda *t: apply(PAIR, *t), (0, None)), (None, 0))(inputs, kernels)
    for i, j in itertools.product(range(3), range(2)):
        torch.testing.assert_close(result[i, j], define(PAIR, inputs[j], kernels[i]))


@pytest.mark.parametrize("name", [PAIR, FUSED])
@pytest.mark.filterwarnings(
    "ignore:There is a performance drop"
)  # of torch's older vmap, which does not support rules
def test_forward_mode_and_batched_gradients(name):
    tensors = [t.requires_grad_() for t in arguments(name)]
    checks = {"check_forward_ad": True, "check_batched_forward_grad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(lambda *t: apply(name, *t), tensors, **checks)
    assert torch.autograd.gradgradcheck(lambda *t: apply(name, *t), tensors, check_fwd_over_rev=True)


def test_tangent_of_a_gradient_alone():
    """The output has no tangent, but the gradient that the backward pass receives has one."""
    input, kernel = (t.requires_grad_() for t in arguments(PAIR))
    output = apply(PAIR, input, kernel)
    with forward_ad.dual_level():
        gradient = forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 3))
        tangent = forward_ad.unpack_dual(torch.autograd.grad(output, input, gradient)[0]).tangent
    expected = torch.autograd.grad(define(PAIR, input, kernel), input, torch.full_like(output, 3))[0]
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("transform", ["grad", "jvp", "hessian", "vmap"])
@pytest.mark.parametrize("name", [PAIR, FUSED])
def test_transforms_compile_as_one_graph(name, transform):
    tensors = arguments(name)[:2] if transform == "hessian" else arguments(name)
    make = of_all(transform, name, len(tensors))
    rest = arguments(name)[len(tensors) :]

    def close(function):
        return make(lambda name, *t: function(name, *t, *rest))

    compiled = torch.compile(close(apply), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), close(define)(*tensors))


@pytest.mark.parametrize("name", [PAIR, FUSED])
def test_transforms_of_compiled_functions(name):
    tensors = arguments(name)
    compiled = torch.compile(lambda *t: apply(name, *t), backend="aot_eager")
    tangents = tuple(t.cos() for t in tensors)
    expected = jvp(lambda *t: define(name, *t), tensors, tangents)
    torch.testing.assert_close(jvp(compiled, tensors, tangents), expected)
    torch.testing.assert_close(vmap(compiled)(*(t[None] for t in tensors))[0], expected[0])


@pytest.mark.parametrize("name", [PAIR, FUSED])
def test_functionalize_keeps_the_operator(name):
    graph = make_fx(torch.func.functionalize(lambda *t: apply(name, *t)))(*arguments(name))
    assert getattr(torch.ops.involution, name).default in [node.target for node in graph.graph.nodes]


@pytest.mark.parametrize("name", [PAIR, FUSED])
def test_autocast_inside_of_a_transform(name):
    tensors = arguments(name, torch.float32)

    def loss(*tensors):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = apply(name, *tensors)
        assert output.dtype == torch.bfloat16
        return output.float().sum()

    grads = grad(loss, tuple(range(len(tensors))))(*tensors)
    exact = [t.to(torch.bfloat16).double() for t in tensors[:4]] + [t.double() for t in tensors[4:]]
    expected = grad(lambda *t: define(name, *t).sum(), tuple(range(len(tensors))))(*exact)
    for result, gradient in zip(grads, expected, strict=True):
        assert result.dtype == torch.float32
        # The generated kernel, and every intermediate gradient, is rounded as well.
        torch.testing.assert_close(
            result.double(), gradient, rtol=0, atol=6 * TOLERANCE[torch.bfloat16] * gradient.abs().max().item()
        )


def test_layers_can_be_stacked():
    layers = [Involution2d(16, 3, stride=2, dtype=torch.float64).eval() for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    input = torch.randn(2, 16, 5, 6, dtype=torch.float64)

    def call(parameters, buffers):
        return functional_call(base, (parameters, buffers), (input,))

    torch.testing.assert_close(vmap(call)(parameters, buffers), torch.stack([layer(input) for layer in layers]))


def test_gradients_of_each_sample_of_a_layer():
    layer = Involution2d(16, (3, 2), dtype=torch.float64).eval()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    images = torch.randn(3, 16, 5, 6, dtype=torch.float64)

    def loss(parameters, image):
        return functional_call(layer, parameters, (image[None],)).square().sum()

    grads = vmap(grad(loss), (None, 0))(parameters, images)
    for n in range(3):
        expected = torch.autograd.grad(layer(images[n : n + 1]).square().sum(), list(layer.parameters()))
        torch.testing.assert_close([gradient[n] for gradient in grads.values()], list(expected))


def test_tangent_of_a_layer():
    layer = Involution2d(16, 3, dtype=torch.float64).eval()
    input, tangent = torch.randn(2, 2, 16, 5, 6, dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        expected = (layer(input + step * tangent) - layer(input - step * tangent)) / (2 * step)
    torch.testing.assert_close(jvp(layer, (input,), (tangent,))[1], expected, rtol=1e-6, atol=1e-6)
