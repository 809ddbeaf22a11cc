"""The loop over the taps, which runs without compiled kernels, against the definition in float64."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cases import Case, cases, check_fused, check_operators
from interpreter import python
from involution import involution2d, reference, taps


NAMES = ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad")
STRIDED_CASE = Case(1, 2, 3, (9, 7), (2, 3), (3, 2), (1, 2), (2, 1), torch.float32, "channels_last", "channels_last")
# More columns of the stride than taps: some pixels of the input are not read at all.
SPARSE_CASE = Case(1, 1, 2, (9, 7), (1, 2), (3, 3), (0, 1), (1, 3), torch.float64, "contiguous", "channels_last")
HALF_CASE = Case(1, 2, 16, (9, 8), (3, 3), (2, 2), (1, 1), (1, 1), torch.bfloat16, "channels_last", "contiguous")
LARGE_CASE = Case(1, 2, 16, (9, 8), (7, 7), (2, 2), (3, 3), (1, 1), torch.bfloat16, "channels_last", "contiguous")


def in_memory_format_of(input, result):
    """The loop does not determine the layout of results: the registered operators do."""
    memory_format = torch.channels_last if taps.is_channels_last(input) else torch.contiguous_format
    return result.contiguous(memory_format=memory_format) if result.dim() == 4 else result


def functions(wrap):
    """The three functions of `taps`, wrapped, as operators that `check_operators` takes."""

    def operator(name):
        function = wrap(getattr(taps, name))
        return torch.no_grad()(lambda *arguments: in_memory_format_of(arguments[0], function(*arguments)))

    return SimpleNamespace(**{name: operator(name) for name in NAMES})


@given(cases())
@example(STRIDED_CASE)
@example(SPARSE_CASE)
@settings(max_examples=100)
def test_matches_definition(case):
    check_operators(functions(lambda function: function), case)


@pytest.mark.parametrize(
    "case",
    [
        STRIDED_CASE,
        SPARSE_CASE,
        HALF_CASE,
        pytest.param(LARGE_CASE, marks=pytest.mark.slow(reason="the same on graphs of 49 taps")),
    ],
)
def test_form_for_compilers_matches_definition(case):
    check_operators(functions(lambda function: torch.compile(function, backend="eager", fullgraph=True)), case)


@given(cases(), st.integers(1, 20), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_fused_form_matches_definition(case, hidden, affine, relu):
    def fused(*arguments):
        output = reference.involution2d_fused(*arguments, involution2d=taps.involution2d)
        return in_memory_format_of(arguments[0], output)

    check_fused(SimpleNamespace(involution2d_fused=fused), case, hidden, affine, relu)


WITHOUT_LIBRARY = """
import os, sys, warnings
os.environ["CXX"] = "/nowhere/c++"
os.environ["TORCH_EXTENSIONS_DIR"] = sys.argv[1]
warnings.simplefilter("ignore")
import torch
from cases import Case, check_fused, check_operators, plain_involution
from involution import extension, involution2d, involution2d_fused, involution3d, reference
assert not extension.load("cpu")
"""

OPERATORS = """
ops = torch.ops.involution
for layout in ("contiguous", "channels_last"):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        case = Case(2, 2, 3, (9, 7), (2, 3), (3, 2), (1, 2), (2, 1), dtype, layout, layout)
        check_operators(ops, case)
        check_fused(ops, case, 5, True, True)
        input, kernel, grad = case.tensors()
        for op, arguments in (
            (ops.involution2d, (input, kernel)),
            (ops.involution2d_input_grad, (grad, kernel, [9, 7])),
            (ops.involution2d_kernel_grad, (grad, input, 2, [2, 3])),
        ):
            torch.library.opcheck(op, (*arguments, *case.window), test_utils="test_faketensor")  # shapes and strides
    case = Case(1, 2, 2, (3, 2), (2, 3), (2, 1), (2, 2), (1, 2), torch.float64, layout, layout)
    pair = [t.requires_grad_() for t in case.tensors()[:2]]
    assert torch.autograd.gradcheck(lambda *p: involution2d(*p, *case.window), pair)
    assert torch.autograd.gradgradcheck(lambda *p: involution2d(*p, *case.window), pair)
empty = involution2d(torch.zeros(0, 4, 5, 4), torch.zeros(0, 2, 3, 3, 5, 4))
assert empty.shape == (0, 4, 5, 4)

kept, (input, kernel) = set(), pair
def pack(tensor):
    kept.add(tensor.untyped_storage().data_ptr())
    return tensor
with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
    involution2d(input, kernel, *case.window)
assert kept == {t.untyped_storage().data_ptr() for t in pair}
"""

COMPILE = """
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
from torch._dynamo.backends.common import aot_autograd
aot = aot_autograd(fw_compiler=backend, bw_compiler=backend)
case = Case(2, 2, 2, (5, 6), (3, 2), (2, 1), (1, 1), (1, 2), torch.float64, "channels_last", "channels_last")
pair = [t.detach().requires_grad_() for t in case.tensors()[:2]]
features, weight = torch.randn(2, 3, *case.output_size).double(), torch.randn(12, 3, 1, 1).double()

def loss(input, kernel):
    output = involution2d(input, kernel, *case.window)
    return output.square().sum() + involution2d_fused(input, features, weight, None, (3, 2), *case.window).sum()

def definition(input, kernel):
    generated = torch.nn.functional.conv2d(features, weight).view(kernel.shape)
    outputs = [plain_involution(input, k, *case.window) for k in (kernel, generated)]
    return outputs[0].square().sum() + outputs[1].sum()

results = [(f(*pair), *torch.autograd.grad(f(*pair), pair))
           for f in (torch.compile(loss, fullgraph=True, backend=aot), definition)]
torch.testing.assert_close(*results)
assert len(graphs) == 2  # forward and backward, which the compiler sees through
assert not any("involution" in str(node.target) for graph in graphs for node in graph.graph.nodes)
with torch.autocast("cpu", dtype=torch.bfloat16):
    output = torch.compile(involution2d, backend="aot_eager", fullgraph=True)(*(t.float() for t in pair), *case.window)
assert output.dtype == torch.bfloat16

ones = [1, 1, 1]
volumes = [torch.randn(shape).double().requires_grad_() for shape in ((1, 2, 3, 4, 3), (1, 1, 3, 3, 3, 3, 4, 3))]
compiled = torch.compile(involution3d, fullgraph=True, backend="aot_eager")
outputs = compiled(*volumes), reference.involution(*volumes, ones, ones, ones)
torch.testing.assert_close(*outputs)
torch.testing.assert_close(*[torch.autograd.grad(output.sin().sum(), volumes) for output in outputs])

class Layer(torch.nn.Module):
    def forward(self, input, kernel):
        return involution2d(input, kernel, *case.window)

program = torch.export.export(Layer(), tuple(t.detach() for t in pair))
assert torch.ops.involution.involution2d.default in [node.target for node in program.graph.nodes]
"""


@pytest.mark.parametrize("code", [OPERATORS, COMPILE], ids=["operators", "compile"])
def test_without_a_library(root, tmp_path, code):
    """Eager operators, what they keep for the backward pass, and what a compiler sees, without a C++ compiler."""
    result = python("-c", WITHOUT_LIBRARY + code, tmp_path, cwd=root / "tests/support")
    assert result.returncode == 0, result.stderr


def test_inductor_matches_definition():
    case = Case(2, 2, 4, (6, 5), (2, 2), (2, 2), (1, 1), (1, 1), torch.float32, "channels_last", "channels_last")
    pair = [t.requires_grad_() for t in case.tensors()[:2]]
    output = torch.compile(taps.traced_involution2d, fullgraph=True)(*pair, *case.window)
    grads = torch.autograd.grad(output.square().sum(), pair)
    expected = involution2d(*pair, *case.window)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), pair))
