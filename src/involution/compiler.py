"""The C++ and CUDA compilers of this machine: their commands, versions, flags and environment."""

import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


DIGEST_LENGTH = 8  # of the value of `digest`


def command() -> list[str]:
    """The C++ compiler, with the arguments that the variable CXX gives it."""
    text = os.environ.get("CXX", "c++")
    if shutil.which(text):  # a path can contain spaces
        return [text]
    try:
        return shlex.split(text) or [text]
    except ValueError:  # an unbalanced quote: no program has this name
        return [text]


def flags() -> list[str]:
    """The C++ flags for a library that runs on this machine."""
    return ["-O3", "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native", "-Wno-psabi"]


def cuda_runtime_flags(directory: Path) -> list[str]:
    """Linker flags for the CUDA runtime that torch has loaded.

    Then the library uses the same runtime. It also links on machines where the toolkit lacks the runtime library or
    torch searches for it in the wrong folder, because it derives the folder from the path of nvcc.
    """
    maps = Path("/proc/self/maps").read_text().splitlines()
    # A line is "address permissions offset device inode path"; the path can contain spaces.
    paths = [fields[5] for line in maps if len(fields := line.split(maxsplit=5)) == 6]
    runtime = next((path for path in paths if Path(path).name.startswith("libcudart.so")), None)
    if runtime is None:
        return []
    link = directory / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(runtime)
    return [f"-L{shlex.quote(str(directory))}"]


def digest(device_type: str) -> str | None:
    """A short digest of the versions of all compilers that build a library, or None if one of them is missing."""
    # GCC reports the name that it was called by, but g++ and c++ are one compiler.
    versions = [re.sub(r"^\S+ \(", "(", version) if (version := version_text(command())) else version]
    if device_type == "cuda":
        versions.append(version_text([device_compiler()]))
        if host_compiler := os.environ.get("CC"):  # torch passes it to nvcc
            versions.append(version_text([host_compiler]))
    if None in versions:
        return None
    return hashlib.sha256(repr(versions).encode()).hexdigest()[:DIGEST_LENGTH]


def device_compiler() -> str:
    """The path of nvcc, or of hipcc for a ROCm build of torch. There may be no such file."""
    from torch.utils import cpp_extension

    # Where torch finds no toolkit, the path is that of the usual folder: a relative one would be that of any program.
    if torch.version.hip is not None:
        return os.path.join(cpp_extension.ROCM_HOME or "/opt/rocm", "bin", "hipcc")
    return os.path.join(cpp_extension.CUDA_HOME or "/usr/local/cuda", "bin", "nvcc")


def architectures(device_type: str) -> list[str]:
    """The GPU architectures to compile for, as "sm80" or "gfx90a"; an empty list for libraries without CUDA."""
    if device_type != "cuda":
        return []
    if torch.version.hip is not None:
        requested = os.environ.get("PYTORCH_ROCM_ARCH", "").replace(";", " ").split()
        names = {name.split(":")[0] for name in requested} or rocm_architectures()
        if not names:
            raise RuntimeError("there is no GPU to compile for. Set PYTORCH_ROCM_ARCH, for example to 'gfx90a'")
        return sorted(names)
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        versions = re.split(r"[ ;]+", listed.strip(" ;"))
        if invalid := [version for version in versions if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", version)]:
            raise RuntimeError(f"TORCH_CUDA_ARCH_LIST has {invalid[0]!r}, expected numbers such as '8.0;9.0+PTX'")
        return sorted({f"sm{version.replace('.', '').replace('+', '').lower()}" for version in versions})
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU to compile for. Set TORCH_CUDA_ARCH_LIST, for example to '8.0;9.0'")
    return sorted({f"sm{major}{minor}" for major, minor in device_capabilities()})


def device_capabilities() -> list[tuple[int, int]]:
    return [torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())]


def rocm_architectures() -> set[str]:
    """The architectures of this machine's GPUs, for a ROCm build of torch."""
    names = [torch.cuda.get_device_properties(n).gcnArchName for n in range(torch.cuda.device_count())]
    return {name.split(":")[0] for name in names}  # without features, as in "gfx90a:sramecc+:xnack-"


def obstacle(device_type: str) -> str | None:
    """Why this machine cannot compile, with the cure, as far as can be determined without trying; otherwise None."""
    if sys.platform == "win32":
        return "the kernels need GCC or Clang, which torch does not use on Windows. Use WSL"
    with scripts_on_path():
        compiler = command()[0]
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler: {compiler!r} is not on PATH. Install g++, or set CXX to a compiler"
        if device_type in ("cpu", "cuda") and shutil.which("ninja") is None:
            return "ninja is not on PATH. Install it: pip install ninja"
    if device_type == "cuda":
        from torch.utils import cpp_extension

        if torch.version.hip is not None:
            if shutil.which(device_compiler()) is None:
                return f"there is no hipcc. Install ROCm {torch.version.hip}, or set ROCM_HOME to it"
            return None
        if torch.version.cuda is None:
            return "this build of torch has no CUDA. Install a CUDA build of torch"
        cuda_home = cpp_extension.CUDA_HOME
        if cuda_home is None or shutil.which(device_compiler()) is None:
            return (
                "there is no nvcc. Install the CUDA toolkit of the major version that torch was built with "
                f"({torch.version.cuda}), or set CUDA_HOME to it"
            )
        if shlex.quote(cuda_home) != cuda_home:
            return (
                f"the CUDA toolkit is in {cuda_home!r}, a path that torch does not quote when it links. Set CUDA_HOME "
                "to a symbolic link to it whose path has no spaces or other characters special to a shell"
            )
    return None


@contextmanager
def scripts_on_path() -> Iterator[None]:
    """Adds the folder of the interpreter to PATH, which contains ninja even if the environment is not activated."""
    before = os.environ.get("PATH")
    os.environ["PATH"] = os.pathsep.join(filter(None, [before, os.path.dirname(sys.executable)]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before


@contextmanager
def quoted_library_path() -> Iterator[None]:
    """Quotes the path of torch's libraries, which torch writes into the linker's command line without quotes."""
    from torch.utils import cpp_extension

    before = cpp_extension.TORCH_LIB_PATH
    cpp_extension.TORCH_LIB_PATH = shlex.quote(before)
    try:
        yield
    finally:
        cpp_extension.TORCH_LIB_PATH = before


def version_text(command: list[str]) -> str | None:
    """What a compiler prints for `--version`, or None if there is no such program."""
    with scripts_on_path():
        program = shutil.which(command[0])
    return None if program is None else _output(program, *command[1:], "--version")


@functools.cache
def _output(program: str, *arguments: str) -> str:
    try:
        environment = {**os.environ, "LC_ALL": "C"}  # the same output in all languages
        command = [program, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace").stdout
    except OSError:  # not a program for this machine: the compilation reports it
        return ""
