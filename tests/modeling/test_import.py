"""`import rednet` registers the models, compiles nothing, and needs neither torchvision, timm nor Pillow."""

import json
import os
import subprocess
import sys

import torch
from transformers import AutoImageProcessor, ConvNextImageProcessor

from small_models import small_config, small_model


WITHOUT_TORCHVISION = """
import importlib.util, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("torchvision", "timm") else find_spec(name, *rest)

import rednet
from PIL import Image
from transformers import AutoImageProcessor, pipeline
print(type(AutoImageProcessor.from_pretrained(sys.argv[1])).__name__)
assert len(pipeline("image-classification", model=sys.argv[1])(Image.new("RGB", (80, 60)), top_k=2)) == 2
assert not {"torchvision", "timm"} & set(sys.modules)
"""


def test_imports_without_pillow():
    code = WITHOUT_TORCHVISION.split("import rednet")[0].replace('("torchvision", "timm")', '("torchvision", "PIL")')
    code += "import rednet, torch; rednet.RedNetModel(rednet.RedNetConfig(depths=[1, 1, 1, 1])).eval()(torch.zeros(1, 3, 32, 32))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_works_without_torchvision(tmp_path):
    small_model().save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ConvNextImageProcessorPil"


def test_importing_compiles_nothing(tmp_path):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import rednet"], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_image_processor_is_found_by_the_configuration(tmp_path):
    """A preprocessor_config.json that does not name its class is read by the one of the model type."""
    small_config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}, "crop_pct": 0.875}))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert "ConvNextImageProcessor" in type(processor).__name__
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)
