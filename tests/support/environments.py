"""Virtual environments with our distribution, which find the other packages where this process has them."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def make_environment(folder: Path, distribution: Path) -> Path:
    """Makes an environment with a wheel, or what pip builds from a source folder, and returns its site-packages."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Of a path in such a file, Python does not read the .pth files: the editable installation stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "--disable-pip-version-check", "--quiet"]
    command = [*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", distribution]
    subprocess.run(command, check=True)
    return packages


def copy_sources(root: Path, target: Path) -> None:
    """Copies the repository without what is hidden, built or written by a run."""
    unwanted = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(root, target, ignore=unwanted)
