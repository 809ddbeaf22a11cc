"""The three bilinear operators under autograd, `torch.func` and forward mode.

Involution is bilinear in input and kernel, and so are its two gradients: the derivative of each of the three operators
is another of the three, to any order.

For operators that are registered from Python, PyTorch has neither forward-mode derivatives nor rules for `torch.func`.
In these cases `bilinear` calls an autograd function that has both. Those in three dimensions are not registered:
outside of compilers, they are always called by this autograd function.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

from . import autocast, taps, volumes
from ._ops import ops


def is_transformed() -> bool:
    """Whether a transform of `torch.func`, or forward mode, is active that the registered operators do not support."""
    if torch._C._are_functorch_transforms_active():
        return not is_functionalized()
    return forward_ad._current_level >= 0


def is_functionalized() -> bool:
    """Whether `torch.func.functionalize` is active, which supports operators, but no autograd functions."""
    if not torch._C._are_functorch_transforms_active():
        return False
    return retrieve_current_functorch_interpreter().key() == TransformType.Functionalize


def bilinear(name: str, first: Tensor, second: Tensor, *arguments) -> Tensor:
    """Calls the bilinear operator `name`, under a transform in a form that the transform supports."""
    if not is_transformed() and name not in volumes.OPERATORS:
        return getattr(ops, name).default(first, second, *arguments)
    if torch.compiler.is_compiling():
        # Dynamo either rejects autograd functions with a jvp or drops the tangent.
        return getattr(taps, name)(first, second, *arguments)
    # Plain numbers, because nested transforms unpack lists.
    numbers = [n for argument in arguments for n in (argument if isinstance(argument, Sequence) else [argument])]
    return _Bilinear.apply(name, first, second, *numbers)


class _Bilinear(torch.autograd.Function):
    """A bilinear operator. The first dimension of both tensors and of the result is the batch."""

    @staticmethod
    def forward(name, first, second, *numbers):
        operator = volumes.OPERATORS.get(name) or getattr(ops, name).default
        return operator(first, second, *_arguments(name, numbers))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.name, first, second, *ctx.numbers = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad):
        if grad is None:  # as `set_materialize_grads` leaves it
            return None, None, None, *[None] * len(ctx.numbers)
        with autocast.disabled(grad.device.type):
            arguments = _arguments(ctx.name, ctx.numbers)
            grads = GRADIENTS[ctx.name](ctx.needs_input_grad[1:], grad, *ctx.saved_tensors, *arguments)
        return None, *grads, *[None] * len(ctx.numbers)

    @staticmethod
    def jvp(ctx, _, first_tangent, second_tangent, *numbers):
        first, second = ctx.saved_tensors
        pairs = (first_tangent, second), (first, second_tangent)
        tangents = [_Bilinear.apply(ctx.name, *pair, *ctx.numbers) for pair in pairs if None not in pair]
        return sum(tangents[1:], tangents[0])

    @staticmethod
    def vmap(info, in_dims, name, first, second, *numbers):
        def fold(tensor, dim):
            tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return tensor.flatten(0, 1)

        output = _Bilinear.apply(name, fold(first, in_dims[1]), fold(second, in_dims[2]), *numbers)
        return output.unflatten(0, (info.batch_size, output.shape[0] // info.batch_size)), 0


def _arguments(name: str, numbers: Sequence[int]) -> list:
    """The reverse of unpacking in `bilinear`: the number of groups, if the operator has one, followed by lists."""
    dimensions = 3 if name in volumes.OPERATORS else 2
    single = len(numbers) % dimensions
    lists = (list(numbers[n : n + dimensions]) for n in range(single, len(numbers), dimensions))
    return [*numbers[:single], *lists]


def _gradients(dimensions: int) -> dict[str, Callable]:
    """For each operator, a function that returns the gradients of its two tensors.

    Its arguments are which of the two are needed, the gradient of the result, and the arguments of the operator.
    """
    involution = f"involution{dimensions}d"
    input_grad, kernel_grad = f"{involution}_input_grad", f"{involution}_kernel_grad"

    def involution_gradients(needs, grad, input, kernel, *window):
        grad_input = grad_kernel = None
        if needs[0]:
            grad_input = bilinear(input_grad, grad, kernel, input.shape[2:], *window)
        if needs[1]:
            groups, kernel_size = kernel.shape[1], kernel.shape[2 : 2 + dimensions]
            grad_kernel = bilinear(kernel_grad, grad, input, groups, kernel_size, *window)
        return grad_input, grad_kernel

    def input_grad_gradients(needs, grad, grad_output, kernel, input_size, *window):
        grad_grad_output = grad_kernel = None
        if needs[0]:
            grad_grad_output = bilinear(involution, grad, kernel, *window)
        if needs[1]:
            groups, kernel_size = kernel.shape[1], kernel.shape[2 : 2 + dimensions]
            grad_kernel = bilinear(kernel_grad, grad_output, grad, groups, kernel_size, *window)
        return grad_grad_output, grad_kernel

    def kernel_grad_gradients(needs, grad, grad_output, input, groups, kernel_size, *window):
        grad_grad_output = grad_input = None
        if needs[0]:
            grad_grad_output = bilinear(involution, input, grad, *window)
        if needs[1]:
            grad_input = bilinear(input_grad, grad_output, grad, input.shape[2:], *window)
        return grad_grad_output, grad_input

    return {
        involution: involution_gradients,
        input_grad: input_grad_gradients,
        kernel_grad: kernel_grad_gradients,
    }


GRADIENTS = _gradients(2) | _gradients(3)
