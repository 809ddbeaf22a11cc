"""The files of `modeling` as remote code, in an interpreter without `rednet` and `involution`."""

import json
import subprocess
import sys

import torch
from PIL import Image
from remote import WITHOUT_PACKAGES
from transformers import ConvNextImageProcessor, SegformerImageProcessor

from rednet import RedNetConfig, RedNetForImageClassification, RedNetForSemanticSegmentation
from rednet.configuration_rednet import REMOTE_CODE
from rednet.hub import check_hub_folder


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
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
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
