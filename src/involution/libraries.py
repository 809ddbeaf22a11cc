"""Compiled libraries: where they are, their names, and how to find them.

A library for this machine is in torch's cache of extensions (`TORCH_EXTENSIONS_DIR`), in a folder of its own name,
which contains everything that the library depends on. The folder also holds the file `complete` after a successful
compilation, and `failure.json` after a failed one. The wheel for x86-64 Linux contains a library for all machines.
"""

import fnmatch
import hashlib
import os
import platform
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from . import compiler, hosts
from ._ops import ops


CSRC = Path(__file__).parent / "csrc"
PACKAGED = Path(__file__).parent / "lib"  # only in the wheel that `make wheel` builds (setup.py)
COMPLETE = "complete"  # the name of the file that marks a complete library
ANY_COMPILER = "?" * compiler.DIGEST_LENGTH  # a pattern for the part of a name that identifies the compilers
# What `_key` reads besides csrc: the files that determine how the sources are compiled.
_BUILD_FILES = ("compiler.py", "compilation.py", "hosts.py")
# The flags of /proc/cpuinfo whose instructions compilers use with -march=native: on x86 these, on Arm all but
# "evtstrm".
_INSTRUCTIONS = (
    r"(?!evtstrm)"
    if platform.machine() in ("arm64", "aarch64")
    else r"s?sse|avx|fma|f16c|bmi|abm|popcnt|movbe|gfni|adx"
)


def cache_directory() -> Path:
    # Not torch.utils.cpp_extension's own function, because importing that module is slow and searches for CUDA.
    if directory := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(directory).absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "torch_extensions"
    except RuntimeError as error:  # in a container that runs as a user id without an account
        raise RuntimeError(
            f"user {os.getuid()} has no home folder for compiled libraries. Set TORCH_EXTENSIONS_DIR to a writable "
            "folder"
        ) from error


def name(device_type: str) -> str:
    """The name of the library that the compilers of this machine build."""
    compilers = compiler.digest(device_type)
    if compilers is None:
        raise RuntimeError(compiler.obstacle(device_type) or f"there is no C compiler: CC is {os.environ.get('CC')!r}")
    return name_of(device_type, compilers)


def name_of(device_type: str, compilers: str) -> str:
    """The name of a library, or with `ANY_COMPILER` a pattern for the names of libraries of all compilers."""
    return "_".join(["involution", device_type, _key(device_type), compilers, *compiler.architectures(device_type)])


def find(device_type: str, compilers: str | None = None) -> Path | None:
    """Returns a complete library that runs on the devices of this machine, or None.

    Only libraries of the compilers of this machine are considered. With `ANY_COMPILER`, or if a compiler is missing,
    as in images and on the nodes of a cluster, libraries of all compilers are.
    """
    compilers = compilers or compiler.digest(device_type) or ANY_COMPILER
    on_rocm = device_type == "cuda" and torch.version.hip is not None
    capabilities = compiler.device_capabilities() if device_type == "cuda" and not on_rocm else []

    def supports_devices(library: Path) -> bool:
        if on_rocm:
            return compiler.rocm_architectures() <= set(library.stem.split("_"))
        built = re.findall(r"_sm(\d+)(\d)[af]?(ptx)?", library.name)
        return all(any(_runs(*capability, *architecture) for architecture in built) for capability in capabilities)

    return newest(f"involution_{device_type}_{_key(device_type)}_{compilers}*", supports_devices)


def packaged(device_type: str) -> Path | None:
    """Returns the library that came with the package, or None if this processor does not run it.

    It is None as well if the environment variable INVOLUTION_COMPILE is 1.
    """
    library = PACKAGED / f"involution_{device_type}.so"
    if os.environ.get("INVOLUTION_COMPILE") == "1" or not library.exists():
        return None
    return library if {"avx2", "fma"} <= set(_cpu_instructions().split()) else None  # as in csrc/cpu/kernels.cpp


def newest(pattern: str, accepts: Callable[[Path], bool] = lambda _: True) -> Path | None:
    """Returns the accepted library whose name matches `pattern` and that was completed last, or None."""
    cache, libraries = cache_directory(), []
    with suppress(OSError):  # the folder does not exist, or this user cannot read it
        for name in fnmatch.filter(os.listdir(cache), pattern):
            library = cache / name / f"{name}.so"
            with suppress(OSError):
                libraries.append((os.stat(cache / name / COMPLETE).st_mtime_ns, library))
    return max([entry for entry in libraries if accepts(entry[1])], default=(0, None))[1]


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that no process reads a part of it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key(device_type: str) -> str:
    """A digest of everything that a library depends on, except the compilers and GPU architectures."""
    digest = hashlib.sha256()
    sources = sorted(path for path in CSRC.rglob("*") if path.is_file())
    sources += sorted(hosts.SOURCES.glob(f"{device_type}*.*"))  # of a runtime
    for source in [*sources, *(Path(__file__).with_name(name) for name in _BUILD_FILES)]:
        digest.update(source.read_bytes())
    machine = f"{platform.system()} {platform.machine()} {platform.libc_ver()}"
    if device_type in hosts.RUNTIMES:
        digest.update(f"{hosts.version(device_type)} {machine}".encode())
    else:
        digest.update(f"{ops.name} {torch.__version__} {torch.version.cuda or torch.version.hip} {machine}".encode())
    if device_type != "cuda":
        digest.update(_cpu_instructions().encode())
    return digest.hexdigest()[:16]


def _cpu_instructions() -> str:
    """The instructions that a compiler may use on this CPU.

    In a home directory shared by different machines there is one library for each set of instructions. Machines that
    differ in anything else, such as a hypervisor or mitigations, share a library.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        line = next(line for line in lines if line.lower().startswith(("flags", "features")))
        return " ".join(sorted(flag for flag in line.split() if re.match(_INSTRUCTIONS, flag)))
    except (OSError, StopIteration):
        return platform.processor()


def _runs(major: int, minor: int, built_major: str, built_minor: str, ptx: str) -> bool:
    """Whether a GPU runs code built for an architecture.

    It runs code for its own major version and no later minor version, and PTX for no later version.
    """
    built = (int(built_major), int(built_minor))
    return (major, minor) >= built and (major == built[0] or ptx != "")
