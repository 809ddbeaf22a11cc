"""docs/cpp/aoti.cpp: a C++ program without Python runs a package of AOTInductor with the library of the operator."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification, export

from involution import extension


pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def model() -> RedNetForImageClassification:
    torch.manual_seed(0)
    config = RedNetConfig(depths=[1], hidden_sizes=[64], embedding_size=32, num_labels=10)
    model = RedNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # no residual branch is zero
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight)
    return model.eval()


@pytest.fixture(scope="module")
def folder(root, model, tmp_path_factory) -> Path:
    """The program and the package."""
    folder = tmp_path_factory.mktemp("aoti")
    shutil.copy(root / "docs/cpp/aoti.cpp", folder)
    export.export_model(model, folder / "rednet.pt2", "aoti")
    setup, compile, _ = re.findall(r"^//   (.+)$", (folder / "aoti.cpp").read_text(), re.MULTILINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = f"set -e\n{setup}\n{compile}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder


@torch.no_grad()
def test_the_program_computes_the_logits(folder, model):
    """With the command that the source shows, and without an interpreter to be found."""
    usage = re.findall(r"^//   (\./aoti .+)$", (folder / "aoti.cpp").read_text(), re.MULTILINE)
    (command,) = (line.replace("$LIBRARY", str(extension.build("cpu"))) for line in usage)
    picture = torch.randn(1, 3, 40, 50)
    (folder / "picture").write_bytes(picture.numpy().tobytes())
    bash = shutil.which("bash")
    result = subprocess.run(
        [bash, "-c", command], cwd=folder, env={"PATH": "/nonexistent"}, capture_output=True, text=True
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    logits = torch.from_numpy(np.fromfile(folder / "logits", np.float32))
    expected = model(picture).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_a_missing_library_is_reported(folder):
    command = ["./aoti", "missing.so", "rednet.pt2", "40", "50"]
    result = subprocess.run(command, cwd=folder, input="", capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("missing.so: cannot open shared object file")
