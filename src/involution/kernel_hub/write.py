"""Writes the operator as a repository for the Kernel Hub.

The folder is an input for kernel-builder: `build.toml`, `flake.nix`, the sources, tests, a benchmark, and the card. It
also contains the two builds that do not require kernel-builder:

- `build/torch-universal`, the Python package with its sources, which are compiled at first use, as in the installed
  package;
- on Linux, a library for this release of torch and any CPU of this kind (x86-64 with AVX2 or AVX-512, chosen when it
  is loaded, or arm64). It requires the C++ library and glibc of this machine or newer ones: kernel-builder builds for
  older systems, and for CUDA.
"""

import base64
import hashlib
import json
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from .. import compiler, extension


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent
# Each build has its own _ops.py. The others are commands, and what only these use.
_NOT_IN_A_KERNEL = {"_ops.py", "build.py", "conflicts.py", "doctor.py", "profile.py", "timing.py"}
_REPO_ID = "{{ repo_id }}"  # as kernel-builder writes it in the templates of cards

_LAYERS = """
from . import layers


__all__ += ["layers"]
"""
_OPS = """import torch
{load}
ops = torch.ops.{namespace}


def add_op_namespace_prefix(name: str) -> str:
    return f"{namespace}::{{name}}"
"""
_LOAD = """from pathlib import Path

torch.ops.load_library(Path(__file__).parent / "{namespace}.so")
"""


def write(output: Path, repo_id: str) -> list[Path]:
    """Writes the repository into `output` and returns the folders of its builds.

    Args:
        output: a new or an empty folder.
        repo_id: `owner/name`, the repository of the Hub that it is for. `build.toml` and the card name it.

    Raises:
        ValueError: `repo_id` is not of the form `owner/name`.
        FileExistsError: `output` exists and is not an empty folder.
        RuntimeError: the library for this machine cannot be compiled; the message gives the reason and the cure.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"REPO is {repo_id!r}, expected OWNER/NAME")
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"OUTPUT is {output}, which is not empty, expected a new or an empty folder")
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kernel_hub.", dir=parent) as temporary_parent:
        temporary = Path(temporary_parent) / "involution"
        shutil.copytree(_HERE / "repository", temporary, ignore=shutil.ignore_patterns("__pycache__"))
        _fill_in(repo_id, temporary / "build.toml", temporary / "build.toml")
        configuration = tomllib.loads((temporary / "build.toml").read_text())
        _copy_package(temporary / "torch-ext" / "involution")
        builds = [_write_build(temporary, configuration, "torch-universal")]
        if sys.platform == "linux":
            version = "".join(torch.__version__.split(".")[:2])
            flags = ["-DCPU_KERNEL", *configuration["kernel"]["involution_cpu"]["cxx-flags"]]  # as kernel-builder does
            variant = f"torch{version}-cxx11-cpu-{platform.machine()}-linux"
            builds.append(_write_build(temporary, configuration, variant, flags))
        # As kernel-builder does: CARD.md is a template, and the card is among the builds.
        _fill_in(repo_id, temporary / "CARD.md", temporary / "build" / "CARD.md")
        output.mkdir(exist_ok=True)  # not replaced, because it may be a mount point or a symbolic link
        for path in temporary.iterdir():
            shutil.move(path, output)
    return [output / build.relative_to(temporary) for build in builds]


def _fill_in(repo_id: str, template: Path, target: Path) -> None:
    target.write_text(template.read_text().replace(_REPO_ID, repo_id))


def _copy_package(target: Path) -> None:
    (target / "layers").mkdir(parents=True)
    for source in _PACKAGE.glob("*.py"):
        if source.name not in _NOT_IN_A_KERNEL:
            shutil.copy(source, target)
    shutil.copytree(_PACKAGE / "csrc", target / "csrc")
    shutil.copy(_HERE / "layers.py", target / "layers" / "__init__.py")  # kernel-builder lists the layers of a folder
    with (target / "__init__.py").open("a") as file:
        file.write(_LAYERS)


def _write_build(output: Path, configuration: dict, variant: str, cflags: list[str] | None = None) -> Path:
    """Writes `build/<variant>`. If `cflags` are given, it contains a library compiled with them."""
    folder = output / "build" / variant
    _copy_package(folder)
    # Any difference gives another namespace, so that one process can load several versions and builds.
    compilers = None if cflags is None else compiler.digest("cpu")
    digest = hashlib.sha256(f"{variant} {torch.__version__} {platform.libc_ver()} {cflags} {compilers}".encode())
    for path in _files(folder):
        digest.update(path.read_bytes())
    namespace = f"_involution_{'universal' if cflags is None else 'cpu'}_{digest.hexdigest()[:10]}"
    if cflags is not None:
        shutil.copy(extension.build_as(namespace, "cpu", cflags), folder)
    load = "" if cflags is None else _LOAD.format(namespace=namespace)
    (folder / "_ops.py").write_text(_OPS.format(load=load, namespace=namespace))

    general = configuration["general"]
    hashes = {path: hashlib.sha256(path.read_bytes()).digest() for path in _files(folder)}
    metadata = {
        "id": namespace,
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": "cpu"},  # no value stands for all of them
        "digest": {
            "algorithm": "sha256",
            "files": {
                str(path.relative_to(folder)): base64.b64encode(value).decode() for path, value in hashes.items()
            },
        },
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
