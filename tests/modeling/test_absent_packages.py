"""What works without packages that are not there: torchvision, timm, Pillow; and an import that compiles nothing."""

import os
import subprocess
import sys

from transformers import ConvNextImageProcessor

from small_models import small_model


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
