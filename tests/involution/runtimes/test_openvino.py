"""The operators in OpenVINO, against the definition in float64."""

import dataclasses
import itertools
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cases import DTYPES, TOLERANCE, Case, cases, check_fused, plain_involution
from involution import involution2d, involution2d_fused, reference, runtimes


onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")  # for onnx_nodes
openvino = pytest.importorskip("openvino")
import openvino_models  # noqa: E402
from onnx_nodes import node_model, save_graph  # noqa: E402
from openvino_models import CpuPlugin, Evaluation  # noqa: E402


PAPER_CASE = Case(3, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "contiguous", "contiguous")
ODD_CASE = Case(1, 3, 7, (11, 20), (1, 5), (2, 3), (0, 4), (1, 2), torch.float16, "contiguous", "contiguous")
WINDOW = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
RUNTIMES = [CpuPlugin(known=False), CpuPlugin(known=True, threads=2), Evaluation(known=False), Evaluation(known=True)]
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES, ids=["unknown", "known", "evaluate-unknown", "evaluate"])
each_layout = pytest.mark.parametrize("known", [False, True])


def tolerance(runtime, dtype: torch.dtype) -> float:
    return TOLERANCE[dtype] if isinstance(runtime, Evaluation) else max(TOLERANCE[dtype], TOLERANCE[torch.float32])


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return float((result.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def plain_model(known: bool = False, batch=None, size=(7, 9), **changes) -> bytes:
    """An ONNX model of one involution, for `random_pair`."""
    model = node_model("Involution2d", ["input", "kernel"], **{**WINDOW, **changes})
    shapes = {"input": [batch, 32, *size], "kernel": [batch, 2, 3, 3, *size]}
    return openvino_models.with_shapes(model, shapes if known else openvino_models.shapes_of(shapes, known=False))


def random_pair(batch=2, channels=32, groups=2, size=(7, 9), seed=0):
    """Input and kernel for `WINDOW`."""
    torch.manual_seed(seed)
    return {"input": torch.randn(batch, channels, *size), "kernel": torch.randn(batch, groups, 3, 3, *size)}


def exact(tensors: dict) -> torch.Tensor:
    return reference.involution2d(*(tensor.double() for tensor in tensors.values()), *WINDOW.values())


def node_of(model: "openvino.Model"):
    (node,) = (node for node in model.get_ops() if node.get_type_info().version_id == "rednet")
    return node


@each_runtime
def test_involution2d_matches_the_definition(runtime):
    @given(cases())
    @example(PAPER_CASE)
    @example(ODD_CASE)
    @settings(max_examples=15)
    def check(case):
        input, kernel, _ = case.tensors()
        expected = plain_involution(input.double(), kernel.double(), *case.window)
        result = runtime.involution2d(input, kernel, *case.window)
        assert relative_error(result, expected) <= tolerance(runtime, case.dtype)

    check()


@each_runtime
def test_involution2d_fused_matches_the_definition(runtime):
    dtypes = DTYPES if isinstance(runtime, Evaluation) else [dtype for dtype in DTYPES if dtype != torch.float64]

    @given(cases(tuple(dtypes)), st.sampled_from([16, 1, 5, 40]), st.booleans(), st.booleans())
    @example(PAPER_CASE, 64, True, True)
    @example(ODD_CASE, 16, True, False)
    @settings(max_examples=15)
    def check(case, hidden, affine, relu):
        case = dataclasses.replace(case, input_layout="contiguous")  # the only layout of the result
        check_fused(runtime, case, hidden, affine, relu)

    check()


@each_runtime
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given_inputs", list(itertools.product([False, True], repeat=2)))
def test_optional_inputs(runtime, dtype, given_inputs):
    torch.manual_seed(0)
    arguments = [torch.randn(2, 6, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(18, 3, 1, 1)]
    arguments += [torch.randn(18) if given_inputs[0] else None]
    arguments = [tensor if tensor is None else tensor.to(dtype) for tensor in arguments]
    accumulation = torch.promote_types(dtype, torch.float32)
    arguments += [torch.randn(6, dtype=accumulation) if given_inputs[1] else None for _ in range(2)]
    window = (False, [3, 3], *WINDOW.values())
    widened = [tensor if tensor is None else tensor.double() for tensor in arguments]
    expected = reference.involution2d_fused(*widened, *window)
    assert relative_error(runtime.involution2d_fused(*arguments, *window), expected) <= 3 * tolerance(runtime, dtype)


def test_one_model_serves_every_size_and_batch():
    model = openvino_models.compiled(plain_model(), threads=2)
    for batch, channels, groups, size in [
        (1, 32, 2, (7, 9)),
        (3, 48, 1, (31, 2)),
        (0, 8, 4, (5, 5)),
        (16, 1, 1, (1, 1)),
    ]:
        tensors = random_pair(batch, channels, groups, size)
        result, expected = openvino_models.run(model, **tensors), exact(tensors)
        assert result.shape == expected.shape
        assert batch == 0 or relative_error(result, expected) <= TOLERANCE[torch.float32]


@each_runtime
def test_results_without_elements(runtime):
    nothing = random_pair(batch=2, channels=0, groups=2)
    assert runtime.involution2d(*nothing.values(), *WINDOW.values()).shape == (2, 0, 7, 9)
    fused = runtime.involution2d_fused
    weight, window = torch.randn(9, 4, 1, 1), (None, None, None, True, [3, 3], *WINDOW.values())
    assert fused(torch.randn(0, 3, 6, 5), torch.randn(0, 4, 6, 5), weight, *window).shape == (0, 3, 6, 5)
    # A kernel of zeros.
    result = fused(torch.randn(1, 3, 6, 5), torch.randn(1, 0, 6, 5), torch.randn(9, 0, 1, 1), *window)
    assert torch.equal(result, torch.zeros(1, 3, 6, 5))


@each_layout
def test_shapes_are_inferred_as_far_as_they_are_known(known):
    read = openvino_models.core().read_model
    unknown = node_model("Involution2d", ["input", "kernel"], **WINDOW)
    for model in (unknown, plain_model()):
        assert node_of(read(model)).get_output_partial_shape(0) == openvino.PartialShape([-1] * 4)
    model = read(plain_model(known=True, batch=3 if known else None))
    expected = [3, 7, 9, 32] if known else [-1, 32, 7, 9]
    assert node_of(model).get_output_partial_shape(0) == openvino.PartialShape(expected)
    assert model.outputs[0].get_partial_shape() == openvino.PartialShape([3 if known else -1, 32, 7, 9])
    if not known:
        # The batch size is not needed for the other checks.
        with pytest.raises(RuntimeError, match=re.escape("input has 32 channels, expected a multiple of")):
            shapes = {"input": [None, 32, 7, 9], "kernel": [None, 3, 3, 3, 7, 9]}
            read(openvino_models.with_shapes(unknown, shapes))


def test_shapes_can_be_given_to_the_conversion(tmp_path):
    (tmp_path / "model.onnx").write_bytes(plain_model())
    shapes = [("input", [2, 32, 7, 9]), ("kernel", [2, 2, 3, 3, 7, 9])]
    model = openvino.convert_model(
        tmp_path / "model.onnx", input=shapes, extension=runtimes.openvino_extension(), share_weights=False
    )
    assert node_of(model).get_attributes()["channels_last"]
    tensors = random_pair()
    result = openvino_models.run(openvino_models.compiled(model), **tensors)
    assert relative_error(result, exact(tensors)) <= TOLERANCE[torch.float32]


@each_layout
def test_results_do_not_depend_on_the_number_of_threads(known):
    tensors = random_pair(batch=3, size=(28, 28))
    model = plain_model(known, 3, (28, 28))
    one, two, four = (
        openvino_models.run(openvino_models.compiled(model, threads), **tensors) for threads in (1, 2, 4)
    )
    assert torch.equal(one, two) and torch.equal(one, four)


def ticks_of_threads() -> dict[str, int]:
    """The processor time that each thread of this process has used."""
    ticks = {}
    for status in Path("/proc/self/task").glob("*/stat"):
        fields = status.read_text().rpartition(")")[2].split()
        ticks[status.parent.name] = int(fields[11]) + int(fields[12])
    return ticks


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("threads", [1, 2])
def test_no_more_threads_compute_than_the_inference_has(threads):
    """On a busy machine, fewer may: one thread takes the tasks of another that does not start in time."""
    tensors = random_pair(batch=4, size=(56, 56))
    request = openvino_models.compiled(plain_model(), threads).create_infer_request()
    feed = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    request.infer(feed)
    before = ticks_of_threads()
    used: list[int] = []
    while sum(used) < 100:  # one second
        for _ in range(10):
            request.infer(feed)
        used = [ticks - before.get(thread, 0) for thread, ticks in ticks_of_threads().items()]
    assert 1 <= sum(ticks >= 10 for ticks in used) <= threads


@each_layout
def test_requests_run_at_the_same_time(known):
    inputs = [random_pair(size=(20, 30), seed=n) for n in range(4)]
    model = openvino_models.compiled(plain_model(known, 2, (20, 30)), threads=2)
    expected = [openvino_models.run(model, **tensors) for tensors in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: (n % 4, openvino_models.run(model, **inputs[n % 4])), range(100)))
    assert all(torch.equal(result, expected[n]) for n, result in results)


@each_layout
@pytest.mark.parametrize("save", ["serialize", "save_model"])
def test_saved_models(known, save, tmp_path):
    core, tensors = openvino_models.core(), random_pair()
    model = core.read_model(plain_model(known, 2, dilation=[1, 1]))
    getattr(openvino, save)(model, tmp_path / "model.xml")
    read = core.read_model(tmp_path / "model.xml")
    attributes = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "channels_last": known}
    assert {name: node_of(read).get_attributes()[name] for name in attributes} == attributes
    result = openvino_models.run(openvino_models.compiled(tmp_path / "model.xml"), **tensors)
    assert torch.equal(result, openvino_models.run(openvino_models.compiled(model), **tensors))


@each_layout
def test_saved_fused_models_with_weights_in_float16(known, tmp_path):
    """`openvino.save_model` compresses them, and the plugin computes in float32."""
    torch.manual_seed(0)
    weights = {"weight": torch.randn(18, 3, 1, 1), "bias": torch.randn(18), "scale": torch.randn(6)}
    weights |= {"shift": torch.randn(6)}
    weights = {name: tensor.half().float() for name, tensor in weights.items()}
    helper, batch = onnx.helper, 2 if known else None
    shapes = {"input": [batch, 6, 5, 4], "features": [batch, 3, 5, 4], "output": [batch, 6, 5, 4]}
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs = ["input", "features", *weights]
    node = helper.make_node(
        "Involution2dFused", inputs, ["output"], domain="rednet", kernel_size=[3, 3], relu=1, **WINDOW
    )
    constants = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()]
    core = openvino_models.core()
    model = core.read_model(save_graph(helper.make_graph([node], "graph", values[:2], values[2:], constants)))
    openvino.save_model(model, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").stat().st_size < 18 * 3 * 4 + 1000
    read = core.read_model(tmp_path / "model.xml")
    assert node_of(read).get_attributes()["relu"] and node_of(read).get_attributes()["kernel_size"] == [3, 3]

    images = [torch.randn(2, 6, 5, 4), torch.randn(2, 3, 5, 4)]
    expected = reference.involution2d_fused(
        *(tensor.double() for tensor in [*images, *weights.values()]), True, [3, 3], *WINDOW.values()
    )
    (result,) = openvino_models.compiled(read)([image.numpy() for image in images]).values()
    assert relative_error(torch.from_numpy(result), expected) <= 3 * TOLERANCE[torch.float32]


SHAPES = {
    "Involution2d": {"input": [2, 8, 5, 6], "kernel": [2, 2, 3, 3, 5, 6]},
    "Involution2dFused": {
        "input": [2, 8, 5, 6],
        "features": [2, 4, 5, 6],
        "weight": [18, 4, 1, 1],
        "bias": [18],
        "scale": [8],
        "shift": [8],
    },
}


@st.composite
def changed_calls(draw, operator: str):
    """Shapes and attributes that are valid except for up to three changes."""
    shapes = {name: list(shape) for name, shape in SHAPES[operator].items()}
    attributes = {name: list(value) for name, value in WINDOW.items()}
    if operator == "Involution2dFused":
        attributes["kernel_size"] = [3, 3]
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.integers(0, 2)):
            shape = shapes[draw(st.sampled_from(list(shapes)))]
            position = draw(st.integers(0, len(shape)))
            size = draw(st.sampled_from([0, 1, 2, 3, 5, 7, 16]))
            change = draw(st.sampled_from(["replace", "insert", "remove"]))
            shape[position : position + (change != "insert")] = [] if change == "remove" else [size]
        else:
            name = draw(st.sampled_from(list(attributes)))
            attributes[name][draw(st.integers(0, 1))] = draw(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**62, -(2**63)]))
    return shapes, attributes


def expected_shape(operator: str, shapes: dict, attributes: dict) -> torch.Size | None:
    """What PyTorch's operators return for such tensors, or None if their checks raise an error."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    function = {"Involution2d": involution2d, "Involution2dFused": involution2d_fused}[operator]
    try:
        return function(**tensors, **attributes).shape
    except ValueError:
        return None


@each_layout
@pytest.mark.parametrize("operator", list(SHAPES))
def test_bad_input_is_an_error_of_openvino(operator, known):
    """It has the message of the operator, and the process survives."""
    name = {"Involution2d": "involution2d: ", "Involution2dFused": "involution2d_fused: "}[operator]
    flags = {} if operator == "Involution2d" else {"relu": 1}
    outcomes = []

    @given(changed_calls(operator))
    @settings(max_examples=100)
    def check(call):
        shapes, attributes = call
        expected = expected_shape(operator, shapes, attributes)
        outcomes.append(expected is None)
        model = node_model(operator, list(shapes), **attributes, **flags)
        model = openvino_models.with_shapes(model, openvino_models.shapes_of(shapes, known))
        tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
        if expected is not None:
            assert openvino_models.run(openvino_models.compiled(model), **tensors).shape == expected
            return
        with pytest.raises(RuntimeError, match=f"{name}.* expected "):
            # With one thread and unknown shapes, the plugin drops errors, also of its own operators.
            openvino_models.run(openvino_models.compiled(model, threads=2), **tensors)

    check()
    assert any(outcomes) and not all(outcomes)


def test_a_request_works_after_an_error():
    model, tensors = openvino_models.compiled(plain_model(), threads=2), random_pair()
    request = model.create_infer_request()
    feed = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    for _ in range(3):
        with pytest.raises(
            RuntimeError, match=re.escape("kernel has shape [2, 2, 3, 3, 7, 8], expected [2, 2, 3, 3, 7, 9]")
        ):
            request.infer({**feed, "kernel": feed["kernel"][..., :8].copy()})
        result = torch.from_numpy(request.infer(feed)[0].copy())
        assert relative_error(result, exact(tensors)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride": []}, "involution2d_fused: stride is [], expected two numbers >= 1"),
        ({"stride": [1]}, "involution2d_fused: stride is [1], expected two numbers >= 1"),
        ({"padding": [1, 1, 1, 1]}, "involution2d_fused: padding is [1, 1, 1, 1], expected two numbers >= 0"),
        ({"relu": 2}, "involution2d_fused: relu is 2, expected 0 or 1"),
        ({"kernel_size": [0, 3]}, "involution2d_fused: kernel_size is [0, 3], expected two numbers >= 1"),
        ({"kernel_size": None}, "'kernel_size' does not exist"),
    ],
)
def test_bad_attributes(changes, message):
    attributes = {"kernel_size": [3, 3], **WINDOW, "relu": 0, **changes}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    inputs = ["input", "features", "weight"]
    model = node_model("Involution2dFused", inputs, **attributes)
    model = openvino_models.with_shapes(model, {name: SHAPES["Involution2dFused"][name] for name in inputs})
    with pytest.raises(RuntimeError, match=re.escape(message)):
        openvino_models.core().read_model(model)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (["input", "features"], "2 inputs, expected 3 to 6"),
        (["input", "", "weight"], "input 1 is missing"),
        (["input", "features", "weight", "", "scale"], "one of scale and shift is missing, expected both or neither"),
        (["input", "features", "weight", "", "", "shift"], "one of scale and shift is missing, expected both or"),
    ],
)
def test_missing_inputs(inputs, message):
    model = node_model("Involution2dFused", inputs, kernel_size=[3, 3], **WINDOW, relu=0)
    with pytest.raises(RuntimeError, match=f"involution2d_fused: {message}"):
        openvino_models.core().read_model(model)


@pytest.mark.parametrize(
    "dtypes, message",
    [
        (("INT32", "INT32"), "input has element type i32, expected f32, f64, f16 or bf16"),
        (("FLOAT", "DOUBLE"), "kernel has element type f64, expected f32"),
        (("FLOAT16", "FLOAT"), "kernel has element type f32, expected f16"),
    ],
)
def test_dtypes_are_checked(dtypes, message):
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, getattr(onnx.TensorProto, dtype), None)
        for name, dtype in zip(("input", "kernel", "output"), (*dtypes, dtypes[0]))
    ]
    node = helper.make_node("Involution2d", ["input", "kernel"], ["output"], domain="rednet", **WINDOW)
    with pytest.raises(RuntimeError, match=f"involution2d: {message}"):
        openvino_models.core().read_model(save_graph(helper.make_graph([node], "graph", values[:2], values[2:])))


def write_classifier(path: Path) -> None:
    """Logits of (1, 3, 224, 224): the means of the channels after an involution."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kernel = np.random.default_rng(0).standard_normal((1, 1, 3, 3, 224, 224), np.float32)
    nodes = [
        helper.make_node("Involution2d", ["pixel_values", "kernel"], ["features"], domain="rednet", **WINDOW),
        helper.make_node("ReduceMean", ["features"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    values = [
        helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [None, 3, 224, 224]),
        helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 3]),
    ]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [numpy_helper.from_array(kernel, "kernel")])
    path.write_bytes(save_graph(graph))


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_cpp_program(root, tmp_path):
    """docs/cpp/openvino.cpp, built with the commands in its comment."""
    shutil.copy(root / "docs/cpp/openvino.cpp", tmp_path)
    (tmp_path / "OPENVINO").symlink_to(Path(openvino.__file__).parent)
    write_classifier(tmp_path / "rednet.onnx")
    model = openvino_models.core().read_model(tmp_path / "rednet.onnx")
    openvino.serialize(model, tmp_path / "rednet.xml")
    picture = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    picture.tofile(tmp_path / "picture.bin")
    (logits,) = openvino_models.compiled(model)([picture]).values()

    comment = re.findall(r"^//   (.+)$", (tmp_path / "openvino.cpp").read_text(), re.MULTILINE)
    compile_command, run_command = (line for line in comment if not line.startswith("python"))
    subprocess.run(compile_command, shell=True, cwd=tmp_path, check=True)
    run_command = run_command.replace("LIBRARY", runtimes.openvino_extension())
    for command in (run_command, run_command.replace("rednet.onnx", "rednet.xml")):
        result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        match = re.fullmatch(r"class (\d) with logit (\S+)\n", result.stdout)
        assert int(match[1]) == logits.argmax() and float(match[2]) == pytest.approx(logits.max(), rel=1e-4)

    command = run_command.replace("rednet.onnx", "missing.onnx")
    failed = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and "missing.onnx" in failed.stderr
