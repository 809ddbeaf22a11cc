"""ONNX and OpenVINO files of each kind, in their runtimes, against PyTorch in float64."""

import collections
import copy
import dataclasses
import itertools
import os
import sys

import datasets
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from PIL import ExifTags, Image
from rednet import RedNetConfig, RedNetForImageClassification, export
from rednet.export import __main__ as export_command
from rednet.export.calibration import calibration_batches
from transformers import ConvNextImageProcessor, SegformerImageProcessor

from involution import Involution2d, involution2d, involution2d_fused
from small_models import model_without_zeros, random_images


runtimes = pytest.importorskip("involution.runtimes")

# Relative to the largest logit.
TOLERANCES = {"float32": 1e-5, "float16": 1e-2, "int8": 0.15}
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
VARIANTS = [
    (format, involution, dtype) for format in FILES for involution in export.INVOLUTIONS for dtype in export.DTYPES
]
SHAPES = [(1, 3, 97, 63), (3, 3, 33, 50), (16, 3, 35, 35)]


@pytest.fixture(scope="module")
def model() -> RedNetForImageClassification:
    """One bottleneck of two groups. The first stage has a stride of 1, so that odd sizes stay odd."""
    return model_without_zeros(hidden_sizes=[128], depths=[1])


def pictures(shape: tuple[int, ...]) -> torch.Tensor:
    return random_images(*shape) if shape[0] else torch.zeros(shape)


@pytest.fixture(scope="module")
def calibration() -> list[torch.Tensor]:
    return [random_images(8, 3, 64, 64), random_images(3, 3, 64, 64)]


@pytest.fixture(scope="module")
def exported(model, calibration, tmp_path_factory):
    """Exports a variant once."""
    folders = {}

    def path(format: str, involution: str, dtype: str):
        if (format, involution, dtype) not in folders:
            folder = folders[format, involution, dtype] = tmp_path_factory.mktemp(f"{involution}-{dtype}")
            batches = calibration if dtype == "int8" else ()
            export.export_model(
                model, folder / FILES[format], format, involution=involution, dtype=dtype, calibration=batches
            )
        return folders[format, involution, dtype] / FILES[format]

    return path


def run_onnxruntime(path, custom: bool):
    options = onnxruntime.SessionOptions()
    if custom:
        options.register_custom_ops_library(runtimes.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"pixel_values": x.numpy()})[0]


def run_openvino(path, custom: bool):
    core = openvino.Core()
    if custom:
        core.add_extension(runtimes.openvino_extension())
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: compiled({"pixel_values": x.numpy()})["logits"]


RUN = {"onnx": run_onnxruntime, "openvino": run_openvino}


@pytest.mark.parametrize("format, involution, dtype", VARIANTS)
def test_logits(model, exported, format, involution, dtype):
    run = RUN[format](exported(format, involution, dtype), involution == "custom")
    exact = copy.deepcopy(model).double()
    for shape in SHAPES:
        found = run(pictures(shape))
        with torch.no_grad():
            expected = exact(pictures(shape).double()).logits.numpy()
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert np.abs(found - expected).max() < TOLERANCES[dtype] * np.abs(expected).max(), shape
    try:
        assert run(pictures((0, 3, 32, 32))).shape == (0, 5)
    except RuntimeError as error:  # of OpenVINO's max pooling, unless the plugin runs on one thread
        assert format == "openvino" and "Batch size is zero" in str(error)


def test_an_involution_is_one_node(model, exported):
    """With its kernel generation, scale, shift and ReLU."""
    graph = onnx.load(exported("onnx", "custom", "float32"))
    onnx.checker.check_model(graph)
    assert {(one.domain, one.version) for one in graph.opset_import if one.domain} == {("rednet", 1)}
    types = collections.Counter(node.op_type for node in graph.graph.node)
    assert types["Involution2dFused"] == 2 and types["Conv"] == 7
    assert types.keys() <= {"Involution2dFused", "Conv", "Relu", "MaxPool", "Add", "ReduceMean", "Reshape", "Gemm"}
    # One after each convolution but the last of the bottleneck and that of the shortcut, and one after their sum.
    assert types["Relu"] == types["Conv"] - 1
    stem, bottleneck = (node for node in graph.graph.node if node.domain == "rednet")
    for node, size in ((stem, 3), (bottleneck, 7)):
        assert len(node.input) == 6 and all(node.input)
        found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        window = {"kernel_size": [size] * 2, "stride": [1, 1], "padding": [size // 2] * 2, "dilation": [1, 1]}
        assert found == {**window, "relu": 1}


def test_other_activations_come_after_the_involution(tmp_path):
    model = model_without_zeros(hidden_sizes=[64], depths=[1], hidden_act="silu")
    export.export_model(model, tmp_path / "model.onnx", "onnx", involution="custom")
    nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.domain == "rednet"]
    assert [node.op_type for node in nodes] == ["Involution2dFused"] * 2
    assert all({a.name: a.i for a in node.attribute}["relu"] == 0 for node in nodes)


class GivenKernel(torch.nn.Module):
    def forward(self, input, kernel):
        return involution2d(input, kernel, stride=(2, 1), padding=(1, 2), dilation=(1, 2))


class GeneratedKernel(torch.nn.Module):
    """With a scale, and without the other optional arguments."""

    def forward(self, input, features, weight, scale):
        return involution2d_fused(input, features, weight, None, 3, scale=scale, shift=torch.zeros_like(scale))


GENERATED = [(2, 6, 5, 8), (2, 4, 5, 8), (27, 4, 1, 1), (6,)]
NETWORKS = {
    "Involution2d": (GivenKernel(), [(2, 6, 9, 8), (2, 3, 3, 3, 5, 8)]),
    "Involution2dFused": (GeneratedKernel(), GENERATED),
    "Involution2dFused of a layer": (Involution2d(16, group_channels=4).eval(), [(2, 16, 9, 8)]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_can_have_the_nodes(tmp_path, name):
    network, shapes = NETWORKS[name]
    inputs = tuple(random_images(*shape) for shape in shapes)
    names = [f"input_{n}" for n in range(len(inputs))]
    table = export.translation_table()
    torch.onnx.export(
        network, inputs, tmp_path / "network.onnx", dynamo=True, custom_translation_table=table, input_names=names,
        external_data=False, verbose=False,
    )  # fmt: skip
    (node,) = (node for node in onnx.load(tmp_path / "network.onnx").graph.node if node.domain == "rednet")
    assert node.op_type == name.split()[0]
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(runtimes.onnxruntime_library())
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: input.numpy() for name, input in zip(names, inputs)})
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(*(input.double() for input in inputs))
    torch.testing.assert_close(torch.from_numpy(found).double(), expected, rtol=1e-5, atol=1e-4)


def test_all_convolutions_but_the_first_are_quantized_by_onnxruntime_and_nothing_else(exported):
    graph = onnx.load(exported("onnx", "custom", "int8")).graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    assert first.input[0] == "pixel_values"
    origin = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Conv" and node != first:
            assert {origin[name] for name in node.input} == {"DequantizeLinear"}
        elif node.domain == "rednet":
            weights = {name for name in node.input if name not in origin}
            assert len(weights) == 4  # floating-point weight, bias, scale and shift
    types = collections.Counter(node.op_type for node in graph.node)
    assert (types["Conv"], types["Involution2dFused"]) == (7, 2)


def test_convolutions_are_quantized_by_openvino_and_nothing_else(exported):
    network = openvino.Core().read_model(exported("openvino", "standard", "int8"))
    quantized = collections.Counter(
        target.get_node().get_type_name()
        for node in network.get_ops()
        if node.get_type_name() == "FakeQuantize"
        for target in node.output(0).get_target_inputs()
    )
    assert quantized["Convolution"] == 7 and quantized.keys() <= {"Convolution", "ShapeOf"}


def test_files_in_float16_have_half_the_weights(exported):
    def bytes_of_weights(dtype):
        graph = onnx.load(exported("onnx", "custom", dtype)).graph
        types = collections.Counter()
        for weight in graph.initializer:
            types[onnx.TensorProto.DataType.Name(weight.data_type)] += len(weight.raw_data)
        return types

    full, half = bytes_of_weights("float32"), bytes_of_weights("float16")
    scales = half["FLOAT"]  # of the involutions, and their shifts
    assert scales == 2 * 4 * (16 + 32) and 2 * half["FLOAT16"] == full["FLOAT"] - scales
    sizes = [
        exported("openvino", "standard", dtype).with_suffix(".bin").stat().st_size for dtype in ("float32", "float16")
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_neither_file_of_openvino_is_written_if_one_is_wrong(model, tmp_path, monkeypatch):
    format = export.FORMATS["openvino"]

    def write_another(model, *arguments):
        with torch.no_grad():
            model.classifier.bias += 1
        format.write(model, *arguments)

    monkeypatch.setitem(export.FORMATS, "openvino", dataclasses.replace(format, write=write_another))
    for suffix in (".xml", ".bin"):
        (tmp_path / f"model{suffix}").write_text("of last time")
    with pytest.raises(RuntimeError, match="differs from the model by 1.0e[+]00"):
        export.export_model(model, tmp_path / "model.xml", "openvino")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(
        ("model.xml", "model.bin"), "of last time"
    )


def test_a_killed_export_leaves_no_mixture(model, tmp_path, monkeypatch):
    """The old .xml beside the new .bin would load."""
    format = export.FORMATS["openvino"]

    def write(model, pixel_values, names, variant, path):
        for suffix in format.suffixes:
            path.with_suffix(suffix).write_text("new")

    def load(path, threads):
        return lambda pixel_values: model(pixel_values).logits.detach()

    monkeypatch.setitem(export.FORMATS, "openvino", dataclasses.replace(format, write=write, load=load))
    states = []
    for renames in range(3):
        for suffix in format.suffixes:
            (tmp_path / f"model{suffix}").write_text("old")
        if (process := os.fork()) == 0:
            left = itertools.count(renames, -1)
            sys.addaudithook(lambda event, _: event == "os.rename" and next(left) == 0 and os._exit(9))
            export.export_model(model, tmp_path / "model.xml", "openvino")
            os._exit(0)
        os.waitpid(process, 0)
        states.append({file.suffix: file.read_text() for file in tmp_path.glob("model.*")})
    assert states == [{".bin": "old"}, {".bin": "new"}, {".xml": "new", ".bin": "new"}]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"format": "tflite"}, "format is 'tflite', expected one of ['onnx', 'openvino'"),
        ({"involution": "fast"}, "involution is 'fast', expected one of ['standard', 'custom']"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', expected one of ['float32', 'float16', 'int8']"),
        ({"dtype": "int8"}, "needs calibration data"),
        ({"has_calibration": True}, "dtype is 'float32', which takes no calibration data"),
        ({"format": "aoti", "path": "m.pt2", "involution": "custom"}, "expected 'standard' for format 'aoti'"),
        ({"format": "aoti", "path": "m.pt2", "dtype": "float16"}, "expected 'float32' for format 'aoti'"),
        ({"format": "openvino"}, "m.onnx, expected a name that ends in .xml"),
        ({"format": "openvino", "path": "taken.xml"}, "taken.bin, which is a folder"),
        ({"format": "openvino", "path": "m.xml", "device": "cuda"}, "device is 'cuda', expected 'cpu'"),
    ],
)
def test_wrong_settings_are_refused(arguments, words, tmp_path):
    (tmp_path / "taken.bin").mkdir()
    arguments = {"format": "onnx", "path": "m.onnx", **arguments}
    with pytest.raises(ValueError) as error:
        export.check_output(tmp_path / arguments.pop("path"), **arguments)
    assert words in str(error.value)


@pytest.fixture
def folder(model, tmp_path):
    """The folder of a model, and folders with pictures to calibrate with."""
    model.save_pretrained(tmp_path / "model")
    ConvNextImageProcessor(size={"shortest_edge": 40}, crop_pct=1.0).save_pretrained(tmp_path / "model")
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (50, 60, 3), np.uint8)) for n in range(18)]
    (tmp_path / "pictures/cats").mkdir(parents=True)
    for n, image in enumerate(images):
        image.save(tmp_path / f"pictures/cats/{n:02}.png")
    columns = {"label": list(range(18)), "picture": images}
    features = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    data = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features))
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_calibration_pictures(folder):
    batches = {name: calibration_batches(str(folder / name), str(folder / "model")) for name in ("pictures", "saved")}
    for one in batches.values():
        assert [tuple(batch.shape) for batch in one] == [(16, 3, 40, 40), (2, 3, 40, 40)]
    # The same pictures in the same order: both sources have them in that of their numbers.
    for one, other in zip(batches["pictures"], batches["saved"]):
        assert torch.equal(one, other) and one.std() > 0.1
    with pytest.raises(ValueError, match="empty has no pictures"):
        calibration_batches(str(folder / "empty"), str(folder / "model"))
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(folder / "text")
    with pytest.raises(ValueError, match=r"text has no column of pictures, only \['text'\]"):
        calibration_batches(str(folder / "text"), str(folder / "model"))


def test_calibration_pictures_of_several_sizes(folder):
    """Without resizing, as for segmentation."""
    SegformerImageProcessor(do_resize=False).save_pretrained(folder / "model")
    for n in (7, 8):
        Image.new("RGB", (30, 20)).save(folder / f"pictures/cats/{n:02}.png")
    batches = calibration_batches(str(folder / "pictures"), str(folder / "model"))
    assert sum(map(len, batches)) == 18 and max(map(len, batches)) <= 16
    assert sorted({tuple(batch.shape[1:]) for batch in batches}) == [(3, 20, 30), (3, 50, 60)]


def test_calibration_pictures_are_upright(folder):
    """As the pipeline of Transformers reads them: the camera was held sideways."""
    SegformerImageProcessor(do_resize=False).save_pretrained(folder / "model")
    (folder / "photographs").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(folder / "photographs/sideways.jpg", exif=exif)
    (batch,) = calibration_batches(str(folder / "photographs"), str(folder / "model"))
    assert batch.shape == (1, 3, 30, 20)
    (folder / "photographs/broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.jpg cannot be read as a picture"):
        calibration_batches(str(folder / "photographs"), str(folder / "model"))


def test_the_command_quantizes(folder, monkeypatch, capsys):
    command = ["export", str(folder / "model"), str(folder / "model.xml"), "--format", "openvino", "--dtype", "int8"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="needs calibration data"):
        export_command.main()
    monkeypatch.setattr(sys, "argv", [*command, "--calibration_data", str(folder / "pictures")])
    export_command.main()
    assert "model.xml: " in capsys.readouterr().out
    assert {path.name for path in folder.glob("model.*")} == {"model.xml", "model.bin"}


def test_a_configuration_without_a_classifier_is_exported(tmp_path):
    """Every output of a backbone has its name."""
    from rednet import RedNetBackbone

    sizes = {"embedding_size": 32, "hidden_sizes": [64], "depths": [1]}
    backbone = RedNetBackbone(RedNetConfig(**sizes, out_features=["stem", "stage1"]))
    export.export_model(backbone.eval(), tmp_path / "model.xml", "openvino")
    network = openvino.Core().read_model(tmp_path / "model.xml")
    assert [output.any_name for output in network.outputs] == ["feature_maps.0", "feature_maps.1"]
