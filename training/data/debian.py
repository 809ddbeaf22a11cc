"""Data sets of Debian packages, for machines that reach a Debian mirror but not the Hugging Face Hub."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path


DATA_DIRECTORY = Path("outputs/data")


def debian_files(package: str, folder: Path) -> Path | None:
    """The files of a package: those of the installed one, or of one that is downloaded and unpacked in outputs/data.

    Args:
        folder: where the package installs them, relative to the root.
    """
    installed, unpacked = Path("/") / folder, DATA_DIRECTORY / folder
    if installed.is_dir():
        return installed
    if not unpacked.is_dir() and shutil.which("apt-get") and shutil.which("dpkg"):
        download(package, folder)
    return unpacked if unpacked.is_dir() else None


def download(package: str, folder: Path) -> None:
    """Downloads a package and unpacks its files in outputs/data, without root permissions. If the machine has no package
    lists, it downloads them to outputs/data as well.

    Args:
        folder: see `debian_files`. It exists afterwards only if it is complete.
    """
    lists = (DATA_DIRECTORY / "apt").resolve()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    own_lists = ["-o", f"Dir::State::Lists={lists}"]
    for commands in ([["download"]], [[*own_lists, "update"], [*own_lists, "download"]]):
        for command in commands:
            names = [package] if command[-1] == "download" else []
            subprocess.run(["apt-get", "-qq", *command, *names], cwd=DATA_DIRECTORY, stderr=subprocess.DEVNULL)
        if archives := sorted(DATA_DIRECTORY.glob(f"{package}_*.deb")):
            unpack(archives[-1], folder)
            break


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a package to a temporary folder, which is then renamed: an interruption leaves no part of it behind."""
    with tempfile.TemporaryDirectory(prefix=".unpack.", dir=DATA_DIRECTORY) as temporary:
        if subprocess.run(["dpkg", "-x", str(archive), temporary]).returncode == 0:
            (DATA_DIRECTORY / folder).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary, folder), DATA_DIRECTORY / folder)
