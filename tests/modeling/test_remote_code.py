"""The two files of `modeling` as remote code, in an interpreter without `rednet` and `involution`."""

import json
import subprocess
import sys

import torch
from remote import WITHOUT_PACKAGES
from transformers import ConvNextImageProcessor

from rednet import RedNetConfig, RedNetForImageClassification
from rednet.configuration_rednet import AUTO_MAP


REMOTE = """
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
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], num_labels=3)
    model = RedNetForImageClassification(config).eval()
    torch.nn.init.ones_(model.rednet.encoder.stages[0].layers[1].layer[2].normalization.weight)
    model.save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    for source in ("configuration_rednet.py", "modeling_rednet.py"):
        assert (tmp_path / source).read_text() == (root / "modeling" / source).read_text()
    images = torch.randn(2, 3, 33, 50, dtype=torch.float64)
    torch.save(images, tmp_path / "tensor.pt")
    from PIL import Image

    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")

    arguments = [str(tmp_path), str(tmp_path / "tensor.pt"), str(tmp_path / "red.png")]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES + REMOTE, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model.double()(images).logits
    torch.testing.assert_close(torch.load(tmp_path / "tensor.pt"), expected, rtol=1e-12, atol=1e-12)
