"""What `pip install` brings: a wheel made of the sources, used from where it was unpacked."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """The files of the wheel, in a folder outside of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("src", "modeling", "training", "configs", "hub_cards"):
        shutil.copytree(root / name, folder / "sources" / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder / "sources")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "sources"], check=True)
    (wheel,) = folder.glob("rednet-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_every_file_that_is_used(root, installed):
    for source, package in (
        ("src/involution", "involution"),
        ("modeling", "rednet"),
        ("training", "rednet/training"),
        ("configs", "rednet/configs"),
        ("hub_cards", "rednet/hub_cards"),
    ):
        files = {path.relative_to(root / source) for path in (root / source).rglob("*") if path.is_file()}
        wanted = {
            path
            for path in files
            if "__pycache__" not in path.parts and (path.suffix not in (".md", ".csv") or source == "hub_cards")
        }
        assert len(wanted) > 5 and all((installed / package / path).is_file() for path in wanted)


def test_the_wheel_works_outside_of_the_repository(installed, tmp_path):
    code = """
import sys
from importlib.resources import files
from pathlib import Path

import torch
import involution, rednet
from transformers import AutoConfig, AutoModelForImageClassification
from rednet.hub.cards import known_checkpoints

for module in (involution, rednet):
    assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
config = AutoConfig.from_pretrained(str(files("rednet") / "configs/models/rednet-fashion-mnist.json"))
with torch.no_grad():
    logits = AutoModelForImageClassification.from_config(config).eval()(torch.randn(2, 3, 28, 28)).logits
assert logits.shape == (2, 10) and len(known_checkpoints()) == 5
assert "cpu: compiled (" in involution.show_config(), involution.show_config()
"""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, str(installed)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


TYPED = """
from pathlib import Path

import torch
from rednet import (
    RedNetBackbone,
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    count_macs,
    count_parameters,
)
from rednet.hub import check_hub_folder, push_hub_folder

from involution import Involution2d, involution2d, involution2d_fused, show_config

layer: torch.nn.Module = Involution2d(64, kernel_size=(7, 7), stride=2, group_channels=8)
output: torch.Tensor = involution2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1, 1), padding=0)
fused: torch.Tensor = involution2d_fused(output, output, torch.ones(1, 1, 1, 1), torch.ones(1), 1)
config = RedNetConfig(num_labels=3, kernel_size=5, out_features=["stage1"], neck_type="involution")
model = RedNetForImageClassification(config).fuse()
backbone, segmenter = RedNetBackbone(config), RedNetForSemanticSegmentation(config)
sizes: list[int] = [count_parameters(model, trainable_only=True), count_macs(backbone, 224, 224)]
text: str = show_config()
check_hub_folder(Path("folder"))
push_hub_folder("folder", "user/name", private=True)
"""
WRONG = [
    'involution2d("image", torch.ones(1, 1, 1, 1, 1, 1))',
    "number: int = show_config()",
    "Involution2d(64, kernel=7)",
    "count_parameters(model, trainable=True)",
    "push_hub_folder(3, 4)",
]


def test_type_checkers_know_what_users_call(installed, tmp_path):
    """mypy, strictly: a program that is right has no complaint, each mistake has one."""
    for name, text in (("right", TYPED), ("wrong", TYPED + "\n".join(WRONG))):
        (tmp_path / f"{name}.py").write_text(text)
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={tmp_path}"]
    command = [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"]
    environment = {**os.environ, "MYPYPATH": str(installed)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    lines = [int(line.split(":")[1]) for line in errors]
    first = TYPED.count("\n") + 1
    assert all(line.startswith("wrong.py") for line in errors), result.stdout
    assert set(lines) == set(range(first, first + len(WRONG))), result.stdout
