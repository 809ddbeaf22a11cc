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
    for name in ("src", "modeling", "configs", "hub_cards"):
        shutil.copytree(root / name, folder / "sources" / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder / "sources")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "sources"], check=True)
    (wheel,) = folder.glob("rednet-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_every_file_that_is_used(root, installed):
    for source, package in (("src/involution", "involution"), ("modeling", "rednet"), ("configs", "rednet/configs")):
        files = {path.relative_to(root / source) for path in (root / source).rglob("*") if path.is_file()}
        wanted = {path for path in files if "__pycache__" not in path.parts and path.suffix not in (".md", ".csv")}
        assert len(wanted) > 5 and all((installed / package / path).is_file() for path in wanted)
    assert (installed / "rednet/hub_cards/model_card.md").is_file()


def test_the_wheel_works_outside_of_the_repository(installed, tmp_path):
    code = """
import sys
from importlib.resources import files
from pathlib import Path

import torch
import involution, rednet
from transformers import AutoConfig, AutoModelForImageClassification
from rednet.hub_cards import known_checkpoints

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
