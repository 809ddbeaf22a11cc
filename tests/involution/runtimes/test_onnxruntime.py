"""The operators in onnxruntime, against the definition in float64."""

import dataclasses
import gc
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cases import DTYPES, TOLERANCE, Case, cases, check_fused, plain_involution
from involution import involution2d, involution2d_fused, reference


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
import onnx_nodes  # noqa: E402


PAPER_CASE = Case(3, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "contiguous", "contiguous")
ODD_CASE = Case(1, 3, 7, (11, 20), (1, 5), (2, 3), (0, 4), (1, 2), torch.float16, "contiguous", "contiguous")
WINDOW = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return float((result.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def plain_session(threads: int = 1, **changes):
    return onnx_nodes.session(
        onnx_nodes.node_model("Involution2d", ["input", "kernel"], **{**WINDOW, **changes}), threads
    )


def random_pair(batch=2, channels=32, groups=2, size=(7, 9), seed=0):
    """Input and kernel for `WINDOW`."""
    torch.manual_seed(seed)
    return {"input": torch.randn(batch, channels, *size), "kernel": torch.randn(batch, groups, 3, 3, *size)}


def exact(tensors: dict) -> torch.Tensor:
    return reference.involution2d(*(tensor.double() for tensor in tensors.values()), *WINDOW.values())


@pytest.mark.parametrize("threads", [1, 2])
def test_involution2d_matches_the_definition(threads):
    runtime = onnx_nodes.OnnxRuntime(threads)

    @given(cases())
    @example(PAPER_CASE)
    @example(ODD_CASE)
    @settings(max_examples=60)
    def check(case):
        input, kernel, _ = case.tensors()
        expected = plain_involution(input.double(), kernel.double(), *case.window)
        result = runtime.involution2d(input, kernel, *case.window)
        assert relative_error(result, expected) <= TOLERANCE[case.dtype]

    check()


@pytest.mark.parametrize("threads", [1, 2])
def test_involution2d_fused_matches_the_definition(threads):
    runtime = onnx_nodes.OnnxRuntime(threads)

    @given(cases(), st.sampled_from([16, 1, 5, 40]), st.booleans(), st.booleans())
    @example(PAPER_CASE, 64, True, True)
    @example(ODD_CASE, 16, True, False)
    @settings(max_examples=60)
    def check(case, hidden, affine, relu):
        case = dataclasses.replace(case, input_layout="contiguous")  # the only layout of the result
        check_fused(runtime, case, hidden, affine, relu)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given_inputs", list(itertools.product([False, True], repeat=2)))
def test_optional_inputs(dtype, given_inputs):
    torch.manual_seed(0)
    arguments = [torch.randn(2, 6, 5, 4), torch.randn(2, 3, 5, 4), torch.randn(18, 3, 1, 1)]
    arguments += [torch.randn(18) if given_inputs[0] else None]
    arguments = [tensor if tensor is None else tensor.to(dtype) for tensor in arguments]
    accumulation = torch.promote_types(dtype, torch.float32)
    arguments += [torch.randn(6, dtype=accumulation) if given_inputs[1] else None for _ in range(2)]
    window = (False, [3, 3], *WINDOW.values())
    widened = [tensor if tensor is None else tensor.double() for tensor in arguments]
    expected = reference.involution2d_fused(*widened, *window)
    result = onnx_nodes.OnnxRuntime().involution2d_fused(*arguments, *window)
    assert relative_error(result, expected) <= 3 * TOLERANCE[dtype]


def test_one_session_serves_every_size_and_batch():
    session = plain_session(threads=2)
    for batch, channels, groups, size in [
        (1, 32, 2, (7, 9)),
        (3, 48, 1, (31, 2)),
        (0, 8, 4, (5, 5)),
        (16, 1, 1, (1, 1)),
    ]:
        tensors = random_pair(batch, channels, groups, size)
        result, expected = onnx_nodes.run(session, **tensors), exact(tensors)
        assert result.shape == expected.shape
        assert batch == 0 or relative_error(result, expected) <= TOLERANCE[torch.float32]


def test_results_without_elements():
    nothing = random_pair(batch=2, channels=0, groups=2)
    assert onnx_nodes.run(plain_session(), **nothing).shape == (2, 0, 7, 9)
    fused = onnx_nodes.OnnxRuntime().involution2d_fused
    weight, window = torch.randn(9, 4, 1, 1), (None, None, None, True, [3, 3], *WINDOW.values())
    assert fused(torch.randn(0, 3, 6, 5), torch.randn(0, 4, 6, 5), weight, *window).shape == (0, 3, 6, 5)
    # A kernel of zeros.
    result = fused(torch.randn(1, 3, 6, 5), torch.randn(1, 0, 6, 5), torch.randn(9, 0, 1, 1), *window)
    assert torch.equal(result, torch.zeros(1, 3, 6, 5))


def test_results_do_not_depend_on_the_number_of_threads():
    tensors = random_pair(batch=3, channels=64, groups=4, size=(28, 28))
    one, two, four = (onnx_nodes.run(plain_session(threads), **tensors) for threads in (1, 2, 4))
    assert torch.equal(one, two) and torch.equal(one, four)


def test_threads_run_one_session_at_the_same_time():
    session = plain_session(threads=2)
    inputs = [random_pair(size=(20 + n, 30), seed=n) for n in range(4)]
    expected = [onnx_nodes.run(session, **tensors) for tensors in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: (n % 4, onnx_nodes.run(session, **inputs[n % 4])), range(200)))
    assert all(torch.equal(result, expected[n]) for n, result in results)


def test_sessions_and_options_are_independent():
    tensors = random_pair()
    model = onnx_nodes.node_model("Involution2d", ["input", "kernel"], **WINDOW)
    first, again = onnx_nodes.session_options(), onnx_nodes.session_options()
    sessions = [onnxruntime.InferenceSession(model, options) for options in (first, first, again)]
    del first, again
    while sessions:  # the last one works after the others, and their options, are gone
        assert relative_error(onnx_nodes.run(sessions[-1], **tensors), exact(tensors)) <= TOLERANCE[torch.float32]
        sessions.pop(0)
        gc.collect()
    assert relative_error(onnx_nodes.run(plain_session(), **tensors), exact(tensors)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_optimized_models_can_be_saved(level, format, tmp_path):
    options = onnx_nodes.session_options()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / f"model.{format}")
    options.add_session_config_entry("session.save_model_format", format.upper())
    onnxruntime.InferenceSession(onnx_nodes.node_model("Involution2d", ["input", "kernel"], **WINDOW), options)
    tensors = random_pair()
    saved = onnx_nodes.session(options.optimized_model_filepath)
    assert relative_error(onnx_nodes.run(saved, **tensors), exact(tensors)) <= TOLERANCE[torch.float32]


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


@pytest.mark.parametrize("operator", list(SHAPES))
def test_bad_input_is_an_error_of_onnxruntime(operator):
    """It has the message of the operator, and the process and the session survive."""
    name = {"Involution2d": "involution2d: ", "Involution2dFused": "involution2d_fused: "}[operator]
    flags = {} if operator == "Involution2d" else {"relu": 1}
    outcomes = []

    @given(changed_calls(operator))
    @settings(max_examples=400)
    def check(call):
        shapes, attributes = call
        expected = expected_shape(operator, shapes, attributes)
        outcomes.append(expected is None)
        model = onnx_nodes.node_model(operator, list(shapes), **attributes, **flags)
        if expected is not None:
            tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
            assert onnx_nodes.run(onnx_nodes.session(model), **tensors).shape == expected
            return
        with pytest.raises(Exception, match=f"{name}.* expected ") as raised:
            tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
            onnx_nodes.run(onnx_nodes.session(model), **tensors)
        assert type(raised.value).__module__.startswith("onnxruntime.")

    check()
    assert any(outcomes) and not all(outcomes)
    tensors = random_pair()
    assert relative_error(onnx_nodes.run(plain_session(), **tensors), exact(tensors)) <= TOLERANCE[torch.float32]


def test_a_session_works_after_an_error():
    session, tensors = plain_session(threads=2), random_pair()
    for _ in range(3):
        with pytest.raises(
            Exception, match=re.escape("kernel has shape [2, 2, 3, 3, 7, 8], expected [2, 2, 3, 3, 7, 9]")
        ):
            onnx_nodes.run(session, input=tensors["input"], kernel=tensors["kernel"][..., :8])
        assert relative_error(onnx_nodes.run(session, **tensors), exact(tensors)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride": []}, "stride is [], expected two numbers >= 1"),
        ({"stride": [1]}, "stride is [1], expected two numbers >= 1"),
        ({"padding": [1, 1, 1, 1]}, "padding is [1, 1, 1, 1], expected two numbers >= 0"),
        ({"dilation": 1}, "dilation is [], expected two numbers >= 1"),
        ({"relu": 2}, "relu is 2, expected 0 or 1"),
        ({"relu": [0, 1]}, "the attribute relu cannot be read"),
        ({"kernel_size": [0, 3]}, "kernel_size is [0, 3], expected two numbers >= 1"),
        ({"kernel_size": None}, "the attribute kernel_size cannot be read"),
    ],
)
def test_bad_attributes_are_errors_of_the_session(changes, message):
    attributes = {"kernel_size": [3, 3], **WINDOW, "relu": 0, **changes}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    model = onnx_nodes.node_model("Involution2dFused", ["input", "features", "weight"], **attributes)
    with pytest.raises(Exception, match="involution2d_fused: .*" + re.escape(message)):
        onnx_nodes.session(model)


@pytest.mark.parametrize(
    "dtypes", [("INT32", "INT32"), ("FLOAT", "DOUBLE"), ("FLOAT16", "FLOAT"), ("STRING", "STRING")]
)
def test_dtypes_are_checked_by_onnxruntime(dtypes):
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, getattr(onnx.TensorProto, dtype), None)
        for name, dtype in zip(("input", "kernel", "output"), (*dtypes, dtypes[0]))
    ]
    node = helper.make_node("Involution2d", ["input", "kernel"], ["output"], domain="rednet", **WINDOW)
    with pytest.raises(Exception, match="Involution2d"):
        onnx_nodes.session(onnx_nodes.save_graph(helper.make_graph([node], "graph", values[:2], values[2:])))
