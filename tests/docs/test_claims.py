"""What the pages say of other libraries, tried with them."""

import re
import subprocess
from pathlib import Path

import peft
import torch
from rednet import RedNetBackbone, RedNetForImageClassification
from transformers import AutoModelForImageClassification, UperNetConfig, UperNetForSemanticSegmentation

from interpreter import python
from remote import WITHOUT_PACKAGES
from small_models import random_images, small_config, small_model
from snippets import read_blocks


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    return python("-c", code, cwd=folder)


def test_a_model_with_a_rednet_in_it_needs_the_import(root, tmp_path):
    config = small_config(hidden_sizes=[64] * 4, depths=[1] * 4, out_indices=[1, 2, 3, 4])
    config = UperNetConfig(backbone_config=config, hidden_size=16, num_labels=3, use_auxiliary_head=False)
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path)
    load = "from transformers import UperNetForSemanticSegmentation as U; U.from_pretrained('.')"
    error = run(load, tmp_path).stderr.strip().splitlines()[-1]
    assert error == "KeyError: 'rednet'" and f"`{error}`" in (root / "docs/dense.md").read_text()
    # Here `rednet` is imported.
    assert isinstance(UperNetForSemanticSegmentation.from_pretrained(tmp_path).backbone, RedNetBackbone)


def test_remote_code_is_at_the_root(tmp_path):
    small_model().save_pretrained(tmp_path / "last")
    code = (
        WITHOUT_PACKAGES
        + """
import glob
import shutil
from functools import partial
from transformers import AutoModelForImageClassification
load = partial(AutoModelForImageClassification.from_pretrained, trust_remote_code=True)
assert type(load("last")).__module__.startswith("transformers_modules.")
try:
    load(".", subfolder="last")
except OSError as error:
    print(error)
for name in glob.glob("last/*_rednet.py"):
    shutil.copy(name, ".")
assert type(load(".", subfolder="last")).__module__.startswith("transformers_modules.")
"""
    )
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "does not appear to have a file named configuration_rednet.py" in result.stdout
    # Here `rednet` is imported.
    model = AutoModelForImageClassification.from_pretrained(tmp_path, subfolder="last")
    assert isinstance(model, RedNetForImageClassification)


def test_an_adapter_comes_back_with_its_statistics(root, tmp_path, monkeypatch):
    (block,) = [block for block in read_blocks(root / "docs/finetune.md") if block.language == "python"]
    images, labels = 3 * random_images(8, 3, 32, 32) + 1, torch.arange(8) % 5
    small_model().save_pretrained(tmp_path / "your-name/rednet-50")
    monkeypatch.chdir(tmp_path)

    def difference(code: str, folder: Path) -> float:
        """Between a trained model and the same one, saved and loaded, as a part of the largest result."""
        torch.manual_seed(0)
        scope = {}
        exec(code, scope)
        model = scope["model"]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(3):
            model.train()(pixel_values=images, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(small_model(), folder)
        with torch.no_grad():
            logits, found = (m.double().eval()(pixel_values=images.double()).logits for m in (model, again))
        return ((found - logits).abs().max() / logits.abs().max()).item()

    assert difference(block.text, tmp_path / "all") < 1e-9
    assert difference(block.text.replace('"normalization", ', ""), tmp_path / "weights") > 0.1


def test_convolutions_that_a_quantizer_sees(root):
    model = small_model().eval()
    convolutions = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    spans = [name for name in convolutions if name.endswith("span")]

    def seen() -> int:
        graph = torch.export.export(model, (random_images(1, 3, 64, 64),)).graph
        return sum(node.target == torch.ops.aten.conv2d.default for node in graph.nodes)

    assert seen() == len(convolutions) - len(spans) > 0
    loop = re.search(
        r"^for name, module in .*?\n(?=\w)", (root / "docs/export.md").read_text(), re.DOTALL | re.MULTILINE
    )
    exec(loop[0], {"model": model})
    assert seen() == len(convolutions)
