"""Compiles a library: for PyTorch with `torch.utils.cpp_extension.load`, for other runtimes by plain commands.

Failures are recorded, so that later processes do not repeat a compilation that takes a minute and fails again.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import torch

from . import compiler, hosts, libraries
from ._ops import ops


logger = logging.getLogger(__name__)

_SOURCES = {"cpu": ("involution2d_cpu.cpp", "cpu/*.cpp"), "cuda": ("involution2d_cuda.cu",)}  # in csrc
_FAILURE = "failure.json"
# Variables that compilers read. A recorded failure is valid only while all of them are unchanged.
_ENVIRONMENT = (
    ("PATH", "CXX", "CC", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "LD_LIBRARY_PATH")
    + ("COMPILER_PATH", "GCC_EXEC_PREFIX", "SDKROOT", "MACOSX_DEPLOYMENT_TARGET", "CONDA_BUILD_SYSROOT")
    + ("CUDA_HOME", "CUDA_PATH", "PYTORCH_NVCC", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
)
# Messages of failures that may not occur again: on the next start there may be more memory or space, or a missing
# header may be installed. "code=1.." is what ninja reports if a signal ended the compiler.
_TRANSIENT = re.compile(
    r"No space left|quota exceeded|Input/output error|Read-only file system|Stale file handle"
    r"|No such file or directory|cannot find -l|[Pp]ermission denied|temporarily unavailable|Too many open files"
    r"|[Oo]ut of memory|bad_alloc|[Cc]annot allocate memory|memory exhausted"
    r"|signal terminated|Killed|interrupted by user|code=1(29|3\d|4\d)"
)


def compile_library(device_type: str, name: str, directory: Path, cflags: list[str] | None) -> None:
    """Compiles `<directory>/<name>.so`, by default with the flags for this machine.

    Raises:
        OSError: the folder cannot be written.
        RuntimeError: the compilation is impossible or failed; the message gives the reason and the cure.
    """
    if obstacle := compiler.obstacle(device_type):
        raise RuntimeError(obstacle)
    if forbids_execution(directory):
        raise RuntimeError(
            f"{directory} is on a file system that is mounted noexec, from which no library can be loaded. Set "
            "TORCH_EXTENSIONS_DIR to a folder on another file system"
        )
    # A process that was killed while it compiled leaves this file. Older releases of torch wait forever for its
    # removal.
    (directory / "lock").unlink(missing_ok=True)
    logger.warning(
        "Compiling the involution operator for %s into %s, once on this machine: this can take minutes",
        device_type,
        directory,
    )
    start = time.perf_counter()
    try:
        if device_type in hosts.RUNTIMES:
            _compile_for_runtime(device_type, directory / f"{name}.so")
        else:
            _compile_for_torch(device_type, name, directory, cflags)
    except Exception as error:
        # An OSError concerns the folder, unless resources for a process are missing. Errors of the dynamic linker have
        # no errno.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM, errno.EAGAIN, errno.EMFILE):
            raise
        raise RuntimeError(_record_failure(directory, device_type, error)) from error
    (directory / _FAILURE).unlink(missing_ok=True)
    logger.warning("Compiled the involution operator for %s in %.0f s", device_type, time.perf_counter() - start)


def _compile_for_torch(device_type: str, name: str, directory: Path, cflags: list[str] | None) -> None:
    from torch.utils import cpp_extension

    if cflags is None:
        cflags = [*compiler.flags(), f"-DINVOLUTION_NAMESPACE={ops.name}"]
    csrc = libraries.CSRC
    if device_type == "cuda" and torch.version.hip is not None:  # torch writes the translated sources next to these
        csrc = shutil.copytree(csrc, directory / "csrc", dirs_exist_ok=True)
    with compiler.scripts_on_path(), compiler.quoted_library_path():
        cpp_extension.load(
            name,
            sorted(str(path) for pattern in _SOURCES[device_type] for path in csrc.glob(pattern)),
            extra_cflags=cflags,
            extra_cuda_cflags=["-O3", *(flag for flag in cflags if flag.startswith("-D"))],
            extra_ldflags=compiler.cuda_runtime_flags(directory) if device_type == "cuda" else None,
            build_directory=str(directory),
            with_cuda=device_type == "cuda",
            is_python_module=False,
        )


def _compile_for_runtime(runtime: str, library: Path) -> None:
    compile_flags, link_flags = hosts.flags(runtime)
    # Only what a runtime asks for is exported. The names of the kernels are those of the library for PyTorch.
    flags = [*compiler.flags(), "-std=c++17", "-fPIC", "-fvisibility=hidden", *compile_flags]
    adapter, kernels = library.with_name(f"{runtime}.o"), _kernels_for_torch()
    # The adapter first: it takes seconds, and is what a new release of a runtime can break.
    sources = [(hosts.SOURCES / f"{runtime}.cpp", adapter)]
    if kernels is None:
        kernels = library.with_name("kernels.o")
        sources.append((libraries.CSRC / "cpu/kernels.cpp", kernels))
    for source, object in sources:
        _run([*compiler.command(), *flags, "-c", str(source), "-o", str(object)])
    _run([*compiler.command(), "-shared", str(adapter), str(kernels), *link_flags, "-o", str(library)])


def _kernels_for_torch() -> Path | None:
    """The object file of the kernels, if the library for PyTorch has been compiled from the same sources."""
    library = libraries.newest(libraries.name("cpu"))
    if library is None:
        return None
    kernels = library.with_name("kernels.o")
    return kernels if kernels.exists() else None


def _run(command: list[str]) -> None:
    """Runs a compiler. Raises RuntimeError, caused by CalledProcessError, with its output if it fails."""
    with compiler.scripts_on_path():
        try:
            subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except subprocess.CalledProcessError as error:
            # The status as a shell and ninja report it: 128 and the number of the signal that ended the compiler.
            status = error.returncode if error.returncode >= 0 else 128 - error.returncode
            raise RuntimeError(f"{error.stdout}{shlex.join(command)}: code={status}") from error


def recorded_failure(directory: Path, device_type: str) -> dict | None:
    """The record of the last failure in this folder, or None if compiler or environment have changed since.

    Its keys are "reason", "permanent" (whether compiling again would fail again) and "attempt" (a unique id).
    """
    try:
        record = json.loads((directory / _FAILURE).read_text())
        return record if record["key"] == _failure_key(device_type) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def forbids_execution(directory: Path) -> bool:
    """Whether libraries in this folder cannot be loaded."""
    return sys.platform == "linux" and bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)


def _record_failure(directory: Path, device_type: str, error: Exception) -> str:
    """Records why the compilation failed, for this and other processes, and returns the reason."""
    output = str(error) or repr(error)
    lines = output.splitlines()
    transient = next((line for line in lines if _TRANSIENT.search(line)), None)
    summary = transient or next((line for line in lines if "error: " in line), lines[0])
    reason = f"compilation failed: {summary.strip()}"
    with suppress(OSError):
        libraries.write_text(directory / "build.log", output)
        reason += f" (see {directory / 'build.log'})"
    # A compiler that ran to its end, or the dynamic linker, would fail again. torch's own checks are not recorded as
    # permanent, because they take no time.
    ended = isinstance(error, OSError) or isinstance(error.__cause__, subprocess.CalledProcessError)
    permanent = ended and transient is None
    if permanent:
        again = f" or run `python -m involution.build {device_type}`" if ops.name == "involution" else ""
        reason += (
            f". It is not repeated until the compiler, its environment or the sources change. To try again, remove "
            f"{directory / _FAILURE}{again}"
        )
    else:
        if transient and re.search("No space left|quota exceeded", transient):
            reason += ". Set TORCH_EXTENSIONS_DIR, and TMPDIR for temporary files, to folders with more space"
        reason += ". The next start tries again"
    record = {"key": _failure_key(device_type), "permanent": permanent, "reason": reason, "attempt": uuid.uuid4().hex}
    with suppress(OSError):
        libraries.write_text(directory / _FAILURE, json.dumps(record, indent=2) + "\n")
    return reason


def _failure_key(device_type: str) -> str:
    """A digest of what can make a compilation succeed if it changes, except what the name of a library contains."""
    digest = hashlib.sha256(f"{sys.prefix} {torch.__file__} {device_type}".encode())
    digest.update(repr([os.environ.get(name) for name in _ENVIRONMENT]).encode())
    with suppress(OSError), compiler.scripts_on_path():
        status = os.stat(shutil.which(compiler.command()[0]) or "")
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
