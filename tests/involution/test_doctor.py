"""`python -m involution.doctor`, in its own processes."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interpreter import python
from involution import compiler, doctor, libraries
from wheels import write_wheel


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return python("-m", "involution.doctor", *arguments, env={**os.environ, **environment})


def test_a_machine_on_which_all_is_well(tmp_path):
    """The same text is printed and written, and nothing in it names the home folder."""
    variables = {"TORCH_EXTENSIONS_DIR": str(libraries.cache_directory())}  # with the libraries of the other tests
    result = run("--output", str(tmp_path / "report.md"), CUDA_VISIBLE_DEVICES="", HOME=str(tmp_path), **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "report.md").read_text() == result.stdout
    assert not list(tmp_path.glob("report.md.*"))
    for fact in (
        f"- Python: {platform.python_version()}",
        f"- torch: {torch.__version__} ",
        "- GPU: none that torch can use",
        "- cpu: 32 of 32 results agree",
        "- cpu: compiled",
        "All is well: the compiled kernels run on cpu.",
    ):
        assert fact in result.stdout, result.stdout


def test_a_compiler_that_fails(tmp_path):
    """The problem comes with its cure, plain PyTorch agrees with the definition, and the home folder is a tilde."""
    folder = tmp_path / "user" / "extensions"
    environment = {"CXX": "/bin/false", "INVOLUTION_COMPILE": "1", "TORCH_EXTENSIONS_DIR": str(folder)}
    result = run(**environment, HOME=str(tmp_path / "user"), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1, result.stdout + result.stderr
    _, verdict = result.stdout.split("## Verdict")
    assert "- cpu: plain PyTorch, because compilation failed" in verdict
    assert "1 problem:" in verdict and "1. involution falls back to plain PyTorch on cpu" in verdict
    assert "build.log). The next start tries again" in verdict
    assert "- cpu: 32 of 32 results agree" in result.stdout
    assert "~/extensions" in result.stdout and str(tmp_path / "user") not in result.stdout


def test_no_compiler_and_another_package_of_the_same_name(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", tmp_path / "other"]
    subprocess.run([*command, write_wheel(tmp_path, "involution-pytorch", {})], check=True)
    variables = {"CXX": "absent", "INVOLUTION_COMPILE": "1", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    result = run(**variables, PYTHONPATH=str(tmp_path / "other"), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert "- C++ compiler: absent not found" in result.stdout
    verdict = result.stdout.split("## Verdict")[1]
    assert "1. the package `involution` also belongs to involution-pytorch: its files are mixed with those" in verdict
    assert "2. involution falls back" in verdict and "Install g++, or set CXX to a compiler" in verdict


@pytest.mark.parametrize("output", ["absent/report.md", "."])
def test_the_file_is_checked_before_the_work(output, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", "--output", str(tmp_path / output)])
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    output, errors = capsys.readouterr()
    assert stop.value.code == 2 and "expected a file in a folder that exists" in errors and output == ""


def test_the_compiler_of_a_missing_toolkit_has_an_absolute_path(monkeypatch):
    """A relative one would be that of any program `bin/nvcc` below the working directory."""
    for name in ("CUDA_HOME", "ROCM_HOME"):
        monkeypatch.setattr(f"torch.utils.cpp_extension.{name}", None)
    assert Path(compiler.device_compiler()).is_absolute()
