"""The decomposition into PyTorch's own operators: its values, exporters that use it and compilers that do not."""

from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor import config as inductor_config
from torch._inductor import lowering
from torch._inductor.utils import run_and_get_code

from cases import cases, check_fused, check_operators
from involution import Involution2d, decomposition, involution2d


@given(cases())
@settings(max_examples=60)
def test_matches_definition(case):
    names = "involution2d_input_grad", "involution2d_kernel_grad"
    gradients = {name: getattr(torch.ops.involution, name) for name in names}
    check_operators(SimpleNamespace(involution2d=decomposition.involution2d, **gradients), case)


@given(cases(), st.integers(1, 20), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_fused_matches_definition(case, hidden, affine, relu):
    check_fused(SimpleNamespace(involution2d_fused=decomposition.involution2d_fused), case, hidden, affine, relu)


class Pair(torch.nn.Module):
    """`involution2d` with a kernel that another module generates."""

    def __init__(self):
        super().__init__()
        self.kernel = torch.nn.Conv2d(16, 2 * 15, 1, stride=2)

    def forward(self, input):
        return involution2d(input, self.kernel(input).unflatten(1, (2, 3, 5)), 2)


SHAPES = [(1, 16, 16, 8), (3, 16, 20, 33), (2, 16, 1, 1)]
LAYERS = {
    "paper": lambda: Involution2d(16),
    "strided": lambda: Involution2d(16, (2, 3), stride=(2, 3), dilation=(1, 2)),
}


@pytest.mark.parametrize("make", [*LAYERS.values(), Pair], ids=[*LAYERS, "pair"])
def test_onnx_export_needs_no_table(make, tmp_path):
    torch.manual_seed(0)
    layer, path = make().eval(), tmp_path / "layer.onnx"
    free = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        layer, (torch.randn(2, 16, 17, 19),), path, input_names=["x"], dynamic_shapes=(free,), dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    compare_with_onnxruntime(layer, path, [*SHAPES, (0, 16, 5, 5)])


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_the_older_onnx_exporter_supports_the_operator(make, tmp_path):
    """It records a trace, in which sizes of the input must not become constants."""
    torch.manual_seed(0)
    layer, path = make().eval(), tmp_path / "layer.onnx"
    free = {"x": {0: "batch", 2: "height", 3: "width"}}
    example = torch.randn(2, 16, 17, 19)
    torch.onnx.export(layer, (example,), path, input_names=["x"], dynamic_axes=free, dynamo=False)
    compare_with_onnxruntime(layer, path, SHAPES)  # its unfold does not support empty batches


def compare_with_onnxruntime(layer: torch.nn.Module, path, shapes: list[tuple]) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in shapes:
        input = torch.randn(shape)
        result = torch.from_numpy(session.run(None, {"x": input.numpy()})[0])
        with torch.no_grad():
            expected = layer.double()(input.double())
            layer.float()
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("environment", ["", "true"])
def test_compilers_and_programs_keep_the_operator(environment, monkeypatch):
    """Also if the variable CI is set, which makes Inductor reject operators that have a decomposition."""
    layer, input = Involution2d(16, 3).eval().requires_grad_(False), torch.randn(2, 16, 9, 10)
    op = torch.ops.involution.involution2d_fused.default
    monkeypatch.setenv("CI", environment)
    lowering.lowerings.pop(op, None)  # of an earlier compilation
    torch._dynamo.reset()
    with inductor_config.patch(force_disable_caches=True):
        _, code = run_and_get_code(torch.compile(layer, fullgraph=True, dynamic=True), input)
    assert "torch.ops.involution.involution2d_fused.default(" in "".join(code)
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (input,), dynamic_shapes=(free,))
    for program in (program, program.run_decompositions()):
        assert op in [node.target for node in program.graph.nodes]
