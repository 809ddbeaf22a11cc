"""Exported models give the outputs of the models, in other runtimes and in a process without Transformers."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import openvino
import pytest
import torch
from rednet import (
    RedNetBackbone,
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    export,
)
from rednet.export import __main__ as export_command


SMALL = {"depths": [1, 1], "hidden_sizes": [64, 128], "embedding_size": 32, "num_labels": 10}


def trained(model):
    """The model with BatchNorm statistics of activations, residual branches that are not zero, and logits of about 1."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.1, 0.3) if hasattr(module, "zero_init") else None
            torch.nn.init.normal_(module.bias, std=0.1)
            module.momentum = None
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.05)
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(4, model.config.num_channels, 96, 96))
    return model.eval()


# Relative to the largest value. Every layer adds the rounding of sums of up to 2,048 products, whose order depends on the
# library and the processor: a few rounding errors of float32 times the root of that length.
TOLERANCE = 8 * 2048**0.5 * torch.finfo(torch.float32).eps


@torch.no_grad()
def exact(model, pictures: torch.Tensor):
    """What the model computes in float64."""
    return copy.deepcopy(model).double()(pictures.double())


def assert_float32_of(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=TOLERANCE * expected.abs().max().item())


@pytest.fixture(scope="module")
def rednet(tmp_path_factory) -> tuple[RedNetForImageClassification, Path]:
    """A RedNet of two stages, and the ONNX file that the command made of its folder."""
    folder = tmp_path_factory.mktemp("rednet")
    model = trained(RedNetForImageClassification(RedNetConfig(**{**SMALL, "num_labels": 1000})))
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", str(folder), str(folder / "rednet.onnx"), "--format", "onnx"])
        export_command.main()
    return model, folder / "rednet.onnx"


def test_onnx_has_standard_nodes_and_names(rednet):
    onnx.checker.check_model(rednet[1], full_check=True)
    graph = onnx.load(rednet[1])
    assert {opset.domain for opset in graph.opset_import} | {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions and not any(node.metadata_props for node in graph.graph.node)

    def shapes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(graph.graph.input) == {"pixel_values": ["batch", 3, "height", "width"]}
    assert shapes(graph.graph.output) == {"logits": ["batch", 1000]}
    assert not list(rednet[1].parent.glob("*.new*"))


SHAPES = [(1, 3, 224, 224), (8, 3, 112, 112), (1, 3, 197, 251), (3, 3, 63, 100), (2, 3, 33, 32), (1, 3, 9, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_onnxruntime_computes_the_logits(rednet, shape):
    model, path = rednet
    pictures = torch.randn(shape)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"pixel_values": pictures.numpy()})[0])
    assert 0.5 < logits.abs().max() < 10
    assert_float32_of(logits, exact(model, pictures).logits)


def test_openvino_takes_the_onnx_file(rednet):
    model, path = rednet
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in SHAPES[2:4]:
        pictures = torch.randn(shape)
        assert_float32_of(torch.from_numpy(compiled(pictures.numpy())["logits"]), exact(model, pictures).logits)


SEGMENTER = {"neck_hidden_size": 32, "decoder_hidden_size": 16, "hidden_act": "silu"}


def test_onnx_of_a_segmentation_model(tmp_path):
    model = trained(RedNetForSemanticSegmentation(RedNetConfig(**SMALL, **SEGMENTER)))
    export.export_model(model, tmp_path / "segmenter.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "segmenter.onnx", providers=["CPUExecutionProvider"])
    pictures = torch.randn(2, 3, 41, 78)
    logits = torch.from_numpy(session.run(["logits"], {"pixel_values": pictures.numpy()})[0])
    assert_float32_of(logits, exact(model, pictures).logits)


# Without Transformers and without `rednet`: the operator is all that a program or a package needs.
LOAD = """
import sys, torch, involution
folder = sys.argv[1]
pictures, expected, tolerance = torch.load(f"{folder}/cases")
program = torch.export.load(f"{folder}/torch_export.pt2").module()
package = torch._inductor.aoti_load_package(f"{folder}/aoti.pt2")
for picture, maps in zip(pictures, expected, strict=True):
    for run in (program, package):
        for found, exact in zip(run(picture)[0], maps, strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance * exact.abs().max())
for run in (program, package):
    assert [tuple(maps.shape[:2]) for maps in run(torch.zeros(0, 3, 64, 64))[0]] == [(0, 64), (0, 128)]
assert not {"transformers", "rednet"} & set(sys.modules)
"""


def test_programs_and_packages_run_in_another_process(tmp_path):
    backbone = trained(RedNetBackbone(RedNetConfig(**SMALL, out_features=["stage1", "stage2"])))
    for format in ("torch_export", "aoti"):
        export.export_model(backbone, tmp_path / f"{format}.pt2", format)
    pictures = [torch.randn(shape) for shape in ((1, 3, 64, 64), (8, 3, 35, 62))]
    expected = [list(exact(backbone, picture).feature_maps) for picture in pictures]
    torch.save((pictures, expected, TOLERANCE), tmp_path / "cases")
    process = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_the_exported_model_stays_as_it_is(tmp_path):
    """Also if the export fails. A file with a name like that of a temporary file stays, too."""
    model = RedNetForImageClassification(RedNetConfig(**SMALL)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (tmp_path / "model.new.pt2").write_text("mine")
    export.export_model(model, tmp_path / "model.pt2", "torch_export")
    with pytest.raises(OSError):
        (tmp_path / "folder").touch()
        export.export_model(model, tmp_path / "folder/model.pt2", "torch_export")
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    output = model(torch.randn(2, 3, 32, 32), labels=torch.zeros(2, dtype=torch.long))
    output.loss.backward()
    assert (tmp_path / "model.new.pt2").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "model.new.pt2", "model.pt2"]


def test_a_file_with_other_outputs_is_not_written(tmp_path, monkeypatch):
    model = trained(RedNetForImageClassification(RedNetConfig(**SMALL)))
    path = tmp_path / "model.pt2"
    path.write_text("of last time")
    format = export.FORMATS["torch_export"]

    def write_another(model, *arguments):
        with torch.no_grad():
            model.classifier.bias += 0.01
        format.write(model, *arguments)

    monkeypatch.setitem(export.FORMATS, "torch_export", dataclasses.replace(format, write=write_another))
    with pytest.raises(RuntimeError, match="differs from the model by 1.0e-02"):
        export.export_model(model, path, "torch_export")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.pt2", "of last time")]


@pytest.mark.parametrize(
    "config, arguments, words",
    [
        (None, ["m.onnx", "--format", "onnx"], "nowhere"),
        ({"model_type": "resnet"}, ["m.onnx", "--format", "onnx"], "model_type 'resnet', expected 'rednet'"),
        ({"model_type": "rednet", "architectures": ["RedNetForX"]}, ["m.onnx", "--format", "onnx"], "'RedNetForX'"),
        ({"model_type": "rednet"}, ["m.onnx", "--format", "onnx"], "model.safetensors"),
        (None, ["m.onnx", "--format", "aoti"], "m.onnx, expected a name that ends in .pt2"),
        (None, ["m.onnx", "--format", "onnx", "--device", "cuda"], "device is 'cuda', expected 'cpu'"),
        (None, ["m.tflite", "--format", "tflite"], "choose from"),
    ],
)
def test_wrong_input_is_refused(config, arguments, words, tmp_path, monkeypatch, capsys):
    folder = tmp_path / ("nowhere" if config is None else "model")
    if config is not None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["export", str(folder), *arguments])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        export_command.main()
    assert words in f"{stopped.value} {capsys.readouterr().err}"
    assert not list(tmp_path.glob("m.*"))


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [name for name in sys.modules if name.split(".")[0] == "onnxscript"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ModuleNotFoundError, match="onnxscript, which is not installed: pip install onnx onnxscript onnxruntime"
    ):
        export.check_output(tmp_path / "model.onnx", "onnx")


def test_torchs_own_onnx_exporter_works(tmp_path):
    model, path = trained(RedNetForImageClassification(RedNetConfig(**SMALL))), tmp_path / "rednet.onnx"
    free = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(
        model, (torch.randn(2, 3, 64, 64),), path, input_names=["x"], dynamic_shapes=(free,), dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pictures = torch.randn(3, 3, 65, 50)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(pictures.double()).logits
    logits = torch.from_numpy(session.run(None, {"x": pictures.numpy()})[0])
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
