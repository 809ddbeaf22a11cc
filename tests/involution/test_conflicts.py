"""Other packages named `involution`, next to this one: with pip, in an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

from environments import make_environment
from involution import conflicts
from wheels import write_wheel


def run(python: Path | str, code: str, folder: Path) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, "-c", code], cwd=folder, env=variables, capture_output=True, text=True)


def test_this_environment_has_no_problem():
    assert conflicts.problems() == []


def test_a_package_of_the_same_name(root, tmp_path):
    """Installed after this one, it replaces a file, and removed again, it takes the file away."""
    ours = {path: (root / "src" / path).read_text() for path in ("involution/__init__.py", "involution/conflicts.py")}
    theirs = {"involution/__init__.py": "from .involution import Involution2d\n"}
    theirs["involution/involution.py"] = "class Involution2d: ...\n"
    packages = make_environment(tmp_path / "environment", write_wheel(tmp_path, "rednet", ours))
    python = tmp_path / "environment/bin/python"

    def pip(*arguments: Path | str) -> None:
        options = ["--python", python, "--disable-pip-version-check", "--quiet"]
        subprocess.run([sys.executable, "-m", "pip", *options, *arguments], check=True)

    def problems() -> str:
        result = run(python, "from involution import conflicts; print(*conflicts.problems())", tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    pip("install", "--no-index", "--no-deps", write_wheel(tmp_path, "involution", theirs))
    assert "also belongs to involution: it replaced `involution/__init__.py`" in problems()
    assert "run `pip uninstall involution`, and then install rednet again" in problems()
    pip("uninstall", "--yes", "involution")
    assert f"(in {packages}/involution, which has no `__init__.py`) is not that of rednet" in problems()


def test_one_namespace_of_operators(tmp_path):
    """The operator that Involution-PyTorch registers."""
    code = """
import torch

schema = "(Tensor input, Tensor weight, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups)"
torch.library.define("involution::involution2d", schema + " -> Tensor")
import involution
"""
    error = run(sys.executable, code, tmp_path).stderr.strip().splitlines()[-1]
    assert "ImportError: another package has registered the operator `involution::involution2d(Tensor input, " in error
    assert "uninstall it, and use `involution.compat.tasaki_lab`" in error
