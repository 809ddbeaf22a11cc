"""The files of `modeling` as remote code, in an interpreter without `rednet` and `involution`."""

import json
import subprocess
import sys

import torch
from transformers import ConvNextImageProcessor

from rednet import RedNetConfig, RedNetForImageClassification


AUTO_MAP = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModel": "modeling_rednet.RedNetModel",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_rednet_segmentation.RedNetForSemanticSegmentation",
    "AutoBackbone": "modeling_rednet.RedNetBackbone",
}

# Imports of the two packages fail as where they are not installed.
REMOTE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rednet", "involution"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())

import torch
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, pipeline
folder, images = sys.argv[1], torch.load(sys.argv[2])
remote = {"trust_remote_code": True}
with torch.no_grad():
    model = AutoModelForImageClassification.from_pretrained(folder, **remote).to(images.dtype)
    base = AutoModel.from_pretrained(folder, **remote).to(images.dtype)
    logits = model(images).logits
    torch.testing.assert_close(model.classifier(base(images).pooler_output), logits)
backbone = AutoBackbone.from_config(AutoConfig.from_pretrained(folder, **remote), **remote)
assert backbone(images.float()).feature_maps[0].shape[1] == 64
assert len(pipeline("image-classification", model=folder, **remote)(sys.argv[3], top_k=3)) == 3
assert not {"rednet", "involution"} & set(sys.modules)
torch.save(logits, sys.argv[2])
"""


def test_gives_the_same_logits_as_the_package(root, tmp_path):
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], num_labels=3, auto_map=AUTO_MAP)
    model = RedNetForImageClassification(config).eval()
    torch.nn.init.ones_(model.rednet.encoder.stages[0].layers[1].layer[2].normalization.weight)
    model.save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    for source in ("configuration_rednet.py", "modeling_rednet.py", "modeling_rednet_segmentation.py"):
        (tmp_path / source).write_text((root / "modeling" / source).read_text())
    images = torch.randn(2, 3, 33, 50, dtype=torch.float64)
    torch.save(images, tmp_path / "tensor.pt")
    from PIL import Image

    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")

    arguments = [str(tmp_path), str(tmp_path / "tensor.pt"), str(tmp_path / "red.png")]
    result = subprocess.run([sys.executable, "-c", REMOTE, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model.double()(images).logits
    torch.testing.assert_close(torch.load(tmp_path / "tensor.pt"), expected, rtol=1e-12, atol=1e-12)
