"""Writes the operator as a repository for the Kernel Hub: `python -m involution.kernel_hub OUTPUT`.

The folder is what kernel-builder takes, and holds the two builds that need no kernel-builder:

- `build/torch-universal`, the Python package with its sources, compiled at first use as the installed one is;
- on Linux, a library for this release of torch, on any CPU of this kind (x86-64 with AVX2, arm64). It needs the C++
  library and glibc of this machine or newer: kernel-builder makes the ones for older systems, and those for CUDA.
"""

import argparse
import base64
import hashlib
import json
import logging
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from .. import extension


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent
_NOT_IN_A_KERNEL = {"_ops.py", "build.py"}  # the first is made for every build

_OPS = """import torch
{load}
ops = torch.ops.{namespace}


def add_op_namespace_prefix(name: str) -> str:
    return f"{namespace}::{{name}}"
"""
_LOAD = """from pathlib import Path

torch.ops.load_library(Path(__file__).parent / "{namespace}.so")
"""


def write(output: Path) -> list[Path]:
    """Writes the repository into `output` and returns the folders of its builds.

    Raises:
        FileExistsError: `output` is there and not empty.
        RuntimeError: the library for this machine cannot be compiled; the message says why and what helps.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty")
    configuration = tomllib.loads((_HERE / "build.toml").read_text())
    beside = output.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kernel_hub.", dir=beside) as parent:
        temporary = Path(parent) / "involution"
        shutil.copytree(_HERE, temporary, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        _copy_package(temporary / "torch-ext" / "involution")
        builds = [_write_build(temporary, configuration, "torch-universal")]
        if sys.platform == "linux":
            version = "".join(torch.__version__.split(".")[:2])
            flags = ["-DCPU_KERNEL", *configuration["kernel"]["involution_cpu"]["cxx-flags"]]  # as kernel-builder does
            variant = f"torch{version}-cxx11-cpu-{platform.machine()}-linux"
            builds.append(_write_build(temporary, configuration, variant, flags))
        output.mkdir(exist_ok=True)  # the folder itself stays: it may be a mount point or a symbolic link
        for path in temporary.iterdir():
            shutil.move(path, output)
    return [output / build.relative_to(temporary) for build in builds]


def _copy_package(to: Path) -> None:
    to.mkdir(parents=True)
    for source in _PACKAGE.glob("*.py"):
        if source.name not in _NOT_IN_A_KERNEL:
            shutil.copy(source, to)
    shutil.copytree(_PACKAGE / "csrc", to / "csrc")


def _write_build(output: Path, configuration: dict, variant: str, cflags: list[str] | None = None) -> Path:
    """Writes `build/<variant>`, with a library compiled with `cflags` where they are given."""
    folder = output / "build" / variant
    _copy_package(folder)
    # Its own for whatever differs: kernels of two versions, or two builds, can be loaded into one process.
    compilers = None if cflags is None else extension.compilers("cpu")
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
        "backend": {"type": "cpu"},  # there is no word for all of them
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m involution.kernel_hub", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder that does not exist, or is empty")
    output = parser.parse_args().output
    logging.basicConfig(format="%(message)s")
    try:
        for folder in write(output):
            print(folder)
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
