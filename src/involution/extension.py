"""Loads the C++ and CUDA kernels at their first use, and compiles them first if necessary.

There is one library for the CPU, one for CUDA, and one for each other runtime (hosts.py), which loads it. A library
that was compiled for this machine is preferred to the one in the wheel, if there is one. Otherwise it is compiled once
for each machine, torch release, compiler and version of the sources, into torch's cache of extensions
(`TORCH_EXTENSIONS_DIR`). A compilation that failed is not repeated until the compiler, its environment or the sources
change. If there is no library, one warning gives the reason and the cure, and the operators fall back to plain
PyTorch.

The kernels for CUDA are compared with the definition before they are used (verification.py).
"""

import logging
import os
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from . import compilation, compiler, families, libraries, verification
from ._ops import ops


logger = logging.getLogger(__name__)

_DEVICE_TYPES = ("cpu", "cuda")
_lock = threading.Lock()
_loaded: dict[str, Path] = {}
_records: list[dict] = []  # what the check of the kernels for CUDA found
_failed: dict[str, str] = {}


def load(device_type: str) -> bool:
    """Loads the compiled kernels for `device_type` ("cpu" or "cuda"), and compiles them first if necessary.

    Returns whether they are loaded. The first failure is reported by a warning; later calls return immediately.
    """
    if device_type in _loaded or _has_kernels(device_type):
        return True
    if device_type in _failed or device_type not in _DEVICE_TYPES:
        return False
    with _lock:
        if device_type not in _loaded and device_type not in _failed:
            try:
                library = find_or_build(device_type)
                refused = None
                if device_type == "cuda":
                    refused = _load_checked(library)
                else:
                    _load_library(library, device_type)
                _loaded[device_type] = library
            except Exception as error:  # plain PyTorch works after any failure
                _failed[device_type] = str(error)
                warnings.warn(
                    f"involution falls back to plain PyTorch on {device_type}, which is slower, because its compiled "
                    f"kernels cannot be used: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                if refused:
                    warnings.warn(
                        "involution replaces some of its CUDA kernels by slower ones, because they do not compute "
                        f"what they should: {refused}",
                        RuntimeWarning,
                        stacklevel=2,
                    )
    return device_type in _loaded


def find_or_build(device_type: str) -> Path:
    """Returns the library for `device_type` ("cpu", "cuda" or a runtime), and compiles it first if necessary.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        RuntimeError: the library cannot be compiled; the message gives the reason and the cure.
    """
    return _existing(device_type) or _build_or_substitute(device_type)


def build(device_type: str) -> Path:
    """Compiles the library for `device_type` ("cpu", "cuda" or a runtime), unless it exists, and returns its path.

    CUDA code is compiled for the GPUs of this machine, or for `TORCH_CUDA_ARCH_LIST` if it is set ("8.0;9.0+PTX").
    Any number of processes may call this at the same time: one compiles, the others wait until it succeeds or fails.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        RuntimeError: the library cannot be compiled; the message gives the reason and the cure.
    """
    pattern = libraries.name_of(device_type, compiler.digest(device_type) or libraries.ANY_COMPILER)
    return libraries.newest(pattern) or build_as(libraries.name(device_type), device_type)


def build_as(name: str, device_type: str, cflags: list[str] | None = None, retry: bool = True) -> Path:
    """Does what `build` does, under a given name and with given C++ flags.

    Args:
        name: must contain everything that the library depends on. If `cflags` are given without
            `-DINVOLUTION_NAMESPACE=...`, it is also the namespace of the operators.
        device_type: "cpu", "cuda" or a runtime.
        cflags: flags of the C++ compiler. The default is the flags for this machine and the namespace of this package.
        retry: whether to compile again after a permanent failure. If not, the recorded failure is raised.
    """
    directory = libraries.cache_directory() / name
    library = directory / f"{name}.so"
    complete = directory / libraries.COMPLETE
    if os.path.exists(complete):  # without the lock, because the folder of a complete library may be read-only
        return library
    failure = compilation.recorded_failure(directory, device_type)
    if failure and failure["permanent"] and not retry:
        raise RuntimeError(failure["reason"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = FileLock(directory / "build.lock").acquire()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise RuntimeError(_not_writable(directory, error)) from error
    with held:
        if complete.exists():
            return library
        latest = compilation.recorded_failure(directory, device_type)
        if latest and latest != failure:  # recorded by the process that this one waited for
            raise RuntimeError(latest["reason"])
        try:
            compilation.compile_library(device_type, name, directory, cflags)
            complete.touch()
        except OSError as error:
            raise RuntimeError(_not_writable(directory, error)) from error
    return library


def show_config() -> str:
    """Returns a text that states which implementation runs on each device type, and why if it is not the compiled one.

    It compiles and loads nothing: kernels that have not been used yet are reported as such.
    """
    lines = [f"involution with torch {torch.__version__}"]
    for device_type in _DEVICE_TYPES:
        if device_type in _loaded:
            state = f"compiled{_origin(_loaded[device_type])} ({_loaded[device_type]})"
        elif _has_kernels(device_type):
            state = "compiled, came with the kernel"
        elif device_type in _failed:
            state = f"plain PyTorch, because {_failed[device_type]}"
        elif device_type == "cuda" and not torch.cuda.is_available():
            state = "no device"
        else:
            try:
                state = forecast(device_type)
            except RuntimeError as error:
                state = f"plain PyTorch, because {error}"
        lines.append(f"  {device_type}: {state}")
        if device_type == "cuda":
            lines += [f"    {line}" for line in _verified()]
    lines.append("  other devices: plain PyTorch")
    return "\n".join(lines)


def forecast(device_type: str) -> str:
    """What the first use will do. Raises RuntimeError, with reason and cure, if it cannot load compiled kernels."""
    if library := _existing(device_type):
        return f"compiled{_origin(library)}, not loaded yet ({library})"
    directory = libraries.cache_directory() / libraries.name(device_type)
    failure = compilation.recorded_failure(directory, device_type)
    reason = failure["reason"] if failure and failure["permanent"] else compiler.obstacle(device_type)
    if reason is None:
        return "to be compiled at first use"
    if library := libraries.find(device_type, libraries.ANY_COMPILER):
        return f"compiled by another compiler, not loaded yet ({library})"
    raise RuntimeError(reason)


def _verified() -> list[str]:
    """What the check of the CUDA kernels has found, or that it has not run yet."""
    if _records:
        return [line for record in _records for line in verification.summary(record)]
    if not torch.cuda.is_available() or _has_kernels("cuda"):
        return []
    lines = []
    with suppress(RuntimeError):
        if library := _existing("cuda"):
            for device in verification.models():
                record = verification.existing(library, device)
                name = verification.describe(device)[0]
                lines += verification.summary(record) if record else [f"{name}: to be checked at first use"]
    return lines


def _existing(device_type: str) -> Path | None:
    """The library to load if nothing has to be compiled: one for this machine, or that of the wheel."""
    return libraries.find(device_type) or libraries.packaged(device_type)


def _origin(library: Path) -> str:
    return ", came with the package" if library.parent == libraries.PACKAGED else ""


def _has_kernels(device_type: str) -> bool:
    """Whether a library has registered kernels. `_ops` of a Kernel Hub kernel may have loaded its own."""
    if device_type not in _DEVICE_TYPES:
        return False
    return ops.involution2d.default.has_kernel_for_dispatch_key(getattr(torch._C.DispatchKey, device_type.upper()))


def _build_or_substitute(device_type: str) -> Path:
    """Builds the library with the compiler of this machine. If that fails, returns one by another compiler."""
    try:
        return build_as(libraries.name(device_type), device_type, retry=False)
    except RuntimeError as error:
        if (library := libraries.find(device_type, libraries.ANY_COMPILER)) is None:
            raise
        logger.warning("%s; the involution operator for %s is loaded from %s", error, device_type, library)
        return library


def _load_checked(library: Path) -> str | None:
    """Loads a library for CUDA without the families of kernels that disagree with the definition on a GPU.

    Returns these families and what to do, or None if all agree.

    Raises:
        RuntimeError: general kernels disagree, which nothing can replace, or the check cannot run.
    """
    _records[:] = verification.records(library)
    refused = verification.refused(_records)
    if not refused:
        _load_library(library, "cuda")
        return None
    problems = "; ".join(map(verification.describe_refusal, refused))
    problems += ". Please report this to the project, with the text of involution.show_config()"
    if any(refusal["family"] == families.GENERAL for refusal in refused):
        raise RuntimeError(f"they do not compute what they should: {problems}")
    _load_library(library, "cuda")
    for refusal in refused:
        families.allow(library, refusal["operator"], refusal["family"], False)
    return problems


def _load_library(library: Path, device_type: str) -> None:
    cure = f"remove {library.parent} to compile it again"
    if library.parent == libraries.PACKAGED:
        cure = "set INVOLUTION_COMPILE=1 to compile it on this machine"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        if library.parent != libraries.PACKAGED and compilation.forbids_execution(library.parent):
            cure = "set TORCH_EXTENSIONS_DIR to a folder on a file system that is not mounted noexec"
        raise RuntimeError(f"{library} cannot be loaded ({error}): {cure}") from error
    # Otherwise the composite kernels, which load the library and call the operator again, would call themselves without
    # end. The library of the wheel asks the processor for AVX2 (csrc/cpu/kernels.cpp), which may know less than
    # /proc/cpuinfo.
    if not _has_kernels(device_type):
        raise RuntimeError(f"{library} has no kernels for this processor: {cure}")


def _not_writable(directory: Path, error: Exception) -> str:
    return f"{directory} cannot be written ({error}). Set TORCH_EXTENSIONS_DIR to a writable folder"
