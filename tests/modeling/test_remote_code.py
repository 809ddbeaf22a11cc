"""The files of `modeling` as remote code, in an interpreter without `rednet` and `involution`."""

import json
import os
import re

import pytest
import torch
from PIL import Image
from rednet import RedNetConfig, RedNetForImageClassification, RedNetForSemanticSegmentation
from rednet.configuration_rednet import REMOTE_CODE
from rednet.hub import check_hub_folder
from rednet.hub.cards import imagenet_card
from transformers import ConvNextImageProcessor, SegformerImageProcessor

from interpreter import python
from remote import WITHOUT_PACKAGES


AUTO_MAP = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModel": "modeling_rednet.RedNetModel",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_rednet.RedNetForSemanticSegmentation",
    "AutoBackbone": "modeling_rednet.RedNetBackbone",
}

REMOTE = """
import torch
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForSemanticSegmentation, pipeline
images, remote = torch.load("images.pt"), {"trust_remote_code": True}
"""

CLASSIFY = """
with torch.no_grad():
    model = AutoModelForImageClassification.from_pretrained(".", **remote).to(images.dtype)
    base = AutoModel.from_pretrained(".", **remote).to(images.dtype)
    logits = model(images).logits
    torch.testing.assert_close(model.classifier(base(images).pooler_output), logits)
backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(".", **remote), **remote)
assert backbone(images.float()).feature_maps[0].shape[1] == 64
assert len(pipeline("image-classification", model=".", **remote)("red.png", top_k=3)) == 3
"""

SEGMENT = """
with torch.no_grad():
    logits = AutoModelForSemanticSegmentation.from_pretrained(".", **remote).to(images.dtype)(images).logits
parts = pipeline("image-segmentation", model=".", **remote)("red.png")
assert parts and all(part["mask"].size == (80, 60) for part in parts)
"""

TRACE = """
import onnxruntime
model = AutoModelForImageClassification.from_pretrained(".", return_dict=False, **remote).eval()
traced = torch.jit.trace(model, images.float())
larger = torch.randn(3, 3, 64, 40)
torch.testing.assert_close(traced(larger)[0], model(larger)[0])
sizes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
names = {"input_names": ["pixel_values"], "dynamic_axes": sizes}
torch.onnx.export(model, (images.float(),), "model.onnx", dynamo=False, **names)
(result,) = onnxruntime.InferenceSession("model.onnx").run(None, {"pixel_values": larger.numpy()})
torch.testing.assert_close(torch.from_numpy(result), model(larger)[0].detach(), rtol=1e-4, atol=1e-5)
logits = model.to(images.dtype)(images)[0].detach()
"""

OPERATOR = """
import importlib.util, warnings
import torch
from torch.func import grad, jvp, vmap
from cases import plain_involution
warnings.simplefilter("error", UserWarning)  # vmap warns of operators that it runs one sample at a time
spec = importlib.util.spec_from_file_location("operator_rednet", sys.argv[1])
operator_rednet = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operator_rednet)
close = torch.testing.assert_close

def make(stride, size, channels_last, dtype=torch.float64, batch=2):
    torch.manual_seed(0)
    output = [-(-n // stride) for n in size]
    pair = torch.randn(batch, 4, *size, dtype=dtype), torch.randn(batch, 18, *output, dtype=dtype)
    if channels_last:
        pair = [t.to(memory_format=torch.channels_last) for t in pair]
    return [pair[0].requires_grad_(), pair[1].unflatten(1, (2, 3, 3)).detach().requires_grad_()]

def ours(input, kernel, stride=2):
    return operator_rednet.involution2d(input, kernel, stride, 1)

def exact(input, kernel, stride=2):
    return plain_involution(input, kernel, [stride] * 2, [1, 1], [1, 1])

def value_and_gradients(function, pair):
    value = function(*pair)
    return value.detach(), *torch.autograd.grad(value.square().sum(), pair)
"""

EAGER = """
for channels_last in (False, True):
    for stride in (1, 2, 3):
        pair = make(stride, (4, 5), channels_last)
        assert torch.autograd.gradcheck(lambda *p: ours(*p, stride), pair)
        assert torch.autograd.gradgradcheck(lambda *p: ours(*p, stride), pair, fast_mode=stride != 2 or channels_last)
        close(value_and_gradients(lambda *p: ours(*p, stride), pair),
              value_and_gradients(lambda *p: exact(*p, stride), pair))
    for dtype in (torch.float16, torch.bfloat16):
        pair = make(2, (9, 6), channels_last, dtype)
        value, *gradients = value_and_gradients(ours, pair)
        assert value.dtype == gradients[0].dtype == gradients[1].dtype == dtype
        reference = exact(*(t.double() for t in pair))
        assert (value - reference).abs().max() <= torch.finfo(dtype).eps * reference.abs().max()
    assert ours(*make(2, (9, 6), channels_last)).is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format)

pair, kept = make(2, (9, 6), True), set()
def pack(tensor):
    kept.add(tensor.untyped_storage().data_ptr())
    return tensor
with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
    ours(*pair)
assert kept == {t.untyped_storage().data_ptr() for t in pair}
for n in range(2):  # gradients of one of the two
    alone = [t.detach().requires_grad_(n == m) for m, t in enumerate(pair)]
    assert torch.autograd.gradcheck(ours, alone)
with torch.autocast("cpu", dtype=torch.bfloat16):  # a kernel of a convolution under autocast
    assert ours(pair[0].float(), pair[1].bfloat16()).dtype == torch.float32
"""

TRANSFORMS = """
pair = tuple(t.detach() for t in make(2, (9, 6), True))
tangents = tuple(t.cos() for t in pair)
def loss(function):
    return lambda *pair: function(*pair).square().sum()
expected = grad(loss(exact), (0, 1))(*pair)
close(grad(loss(ours), (0, 1))(*pair), expected)
close(torch.compile(grad(loss(ours), (0, 1)), fullgraph=True, backend="aot_eager")(*pair), expected)
close(jvp(ours, pair, tangents), jvp(exact, pair, tangents))
for dims in ((0, 0), (None, 0), (0, None)):
    stacks = [t if dim is None else torch.stack([t, t + 1, t * 2]) for t, dim in zip(pair, dims)]
    close(vmap(ours, dims)(*stacks), vmap(exact, dims)(*stacks))
"""

TRACERS = """
warnings.simplefilter("default")
pair, larger = make(2, (9, 6), True), make(2, (7, 14), False, batch=3)
traced = torch.jit.trace(ours, pair)
close(traced(*larger), exact(*larger))
dynamic = torch.export.Dim.DYNAMIC
class Layer(torch.nn.Module):
    def forward(self, input, kernel):
        return ours(input, kernel)
sizes = {"input": {0: dynamic, 2: dynamic, 3: dynamic}, "kernel": {0: dynamic, 4: dynamic, 5: dynamic}}
program = torch.export.export(Layer(), tuple(t.detach() for t in pair), dynamic_shapes=sizes)
close(program.module()(*(t.detach() for t in larger)), exact(*larger).detach())
compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
for tensors in (pair, larger):
    close(value_and_gradients(compiled, tensors), value_and_gradients(exact, tensors))
torch._dynamo.reset()
with torch.no_grad():
    close(torch.compile(ours, fullgraph=True)(*pair), exact(*pair))
"""

SAVE = """
assert not {"rednet", "involution"} & set(sys.modules)
torch.save(logits, "logits.pt")
"""


def compare_with_remote_code(root, folder, model, processor, code: str) -> None:
    """The logits of `code`, run on the saved model and its remote code alone, with those of the package."""
    for module in model.modules():  # a zero here would hide what comes before it
        if getattr(module, "zero_init", False):
            torch.nn.init.ones_(module.weight)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    for source in REMOTE_CODE:
        assert (folder / source).read_text() == (root / "modeling" / source).read_text()
    (folder / "README.md").touch()
    check_hub_folder(folder)
    images = torch.randn(2, 3, 33, 50, dtype=torch.float64)
    torch.save(images, folder / "images.pt")
    Image.new("RGB", (80, 60), "red").save(folder / "red.png")

    code = WITHOUT_PACKAGES + REMOTE + code + SAVE
    result = python("-c", code, cwd=folder)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model.double()(images).logits
    torch.testing.assert_close(torch.load(folder / "logits.pt"), expected, rtol=1e-12, atol=1e-12)


def test_classifies_as_the_package(root, tmp_path):
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], num_labels=3)
    processor = ConvNextImageProcessor(size={"shortest_edge": 64})
    compare_with_remote_code(root, tmp_path, RedNetForImageClassification(config), processor, CLASSIFY)


def test_traces_and_exports_by_tracing(root, tmp_path):
    """What torch.jit.trace records, also for the older ONNX exporter, takes images of other sizes."""
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64, 64], depths=[1, 1], num_labels=3)
    processor = ConvNextImageProcessor(size={"shortest_edge": 64})
    compare_with_remote_code(root, tmp_path, RedNetForImageClassification(config), processor, TRACE)


def test_segments_as_the_package(root, tmp_path):
    torch.manual_seed(0)
    config = RedNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 64],
        depths=[1, 1],
        num_labels=3,
        neck_type="involution",
        neck_hidden_size=32,
    )
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    compare_with_remote_code(root, tmp_path, RedNetForSemanticSegmentation(config), processor, SEGMENT)


@pytest.mark.parametrize("code", [EAGER, TRANSFORMS, TRACERS], ids=["eager", "transforms", "tracers"])
def test_involution_in_plain_pytorch(root, code):
    """Against the definition in float64 and finite differences."""
    code = WITHOUT_PACKAGES + OPERATOR + code
    result = python("-c", code, root / "modeling/operator_rednet.py", cwd=root / "tests/support")
    assert result.returncode == 0, result.stderr


OLD = """
from transformers import AutoConfig, AutoModelForImageClassification
for auto in (AutoConfig, AutoModelForImageClassification):
    try:
        auto.from_pretrained(".", trust_remote_code=True)
    except ImportError as error:
        print(str(error).replace("\\n", " "))
"""


def test_an_older_transformers_is_named(root, tmp_path):
    """The release before the oldest one that the package is installed with, by its metadata."""
    needed = re.search(r'"transformers>=([\d.]+)"', (root / "pyproject.toml").read_text())[1]
    major, minor = map(int, needed.split("."))
    old = f"{major}.{minor - 1}.9"
    RedNetForImageClassification(RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1])).save_pretrained(
        tmp_path
    )
    metadata = tmp_path / f"first/transformers-{old}.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {old}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "first")}
    result = python("-c", WITHOUT_PACKAGES + OLD, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    errors = result.stdout.splitlines()
    assert len(errors) == 2
    for error in errors:
        assert f"transformers>={needed} is required" in error and f"found transformers=={old}" in error
        assert "pip install --upgrade transformers" in error
    card = imagenet_card(RedNetConfig(), "me/rednet-50", "authors")
    assert f"transformers {needed} or newer" in " ".join(card.text.split())


SAVE_CONFIGURATION = """
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained("model", trust_remote_code=True)
config.save_pretrained("alone")
AutoConfig.from_pretrained("alone", trust_remote_code=True)
AutoModel.from_pretrained("model", trust_remote_code=True).save_pretrained("with_a_model")
AutoModel.from_config(AutoConfig.from_pretrained("with_a_model", trust_remote_code=True), trust_remote_code=True)
"""


def test_auto_map_names_files_that_are_there(tmp_path):
    """Of a configuration that was loaded without a model, the code of the models was not fetched."""
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1])
    RedNetForImageClassification(config).save_pretrained(tmp_path / "model")
    # An empty cache: another test's model code would serve.
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    result = python("-c", WITHOUT_PACKAGES + SAVE_CONFIGURATION, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    for name, expected in (("model", AUTO_MAP), ("with_a_model", AUTO_MAP), ("alone", None)):
        auto_map = json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        assert all((tmp_path / name / f"{code.split('.')[0]}.py").is_file() for code in auto_map.values())
        assert auto_map == expected or name == "alone"
    assert not (tmp_path / "alone/modeling_rednet.py").exists() and "AutoModel" not in auto_map
