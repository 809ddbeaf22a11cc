"""A Kernel Hub repository with a library for the CPU of this machine, which the tests load and push."""

import os
import sys
from pathlib import Path

import pytest

from compilers import quick_compiler
from interpreter import python
from shared import shared_folder


@pytest.fixture(scope="package")
def repository(tmp_path_factory) -> Path:
    return shared_folder(tmp_path_factory, "kernel_hub", write_repository) / "elsewhere"


def write_repository(folder: Path) -> None:
    output, neighbor = folder / "involution", folder / ".involution.new"
    (folder / "elsewhere").mkdir()
    output.symlink_to("elsewhere")  # must not be replaced, because it could be a mount point
    neighbor.mkdir()
    (neighbor / "precious").touch()
    command = ["-m", "involution.kernel_hub", "write", output, "user/involution"]
    environment = {"CXX": quick_compiler(folder / "compiler"), "TORCH_EXTENSIONS_DIR": str(folder / "cache")}
    result = python(*command, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    assert (neighbor / "precious").exists() and output.is_symlink()
    names = {"involution", "elsewhere", ".involution.new", "cache", "compiler"}
    assert {path.name for path in folder.iterdir()} <= names
    again = python(*command)
    assert again.returncode == 1 and "which is not empty" in again.stderr


@pytest.fixture(scope="package")
def binary(repository) -> Path:
    """The build that contains a library for this machine."""
    if sys.platform != "linux":
        pytest.skip("the library is made on Linux")
    return next(folder for folder in (repository / "build").glob("*/") if folder.name != "torch-universal")
