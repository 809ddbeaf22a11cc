"""Compiles the operator's C++ and CUDA sources at first use and loads them.

There is one library for the CPU and one for CUDA, each made once per machine, torch release and version of the
sources, in torch's own cache of extensions (`TORCH_EXTENSIONS_DIR`). Where it cannot be made, one warning says why
and what helps, and the reference in plain PyTorch serves.
"""

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from ._ops import ops


logger = logging.getLogger(__name__)

_CSRC = Path(__file__).parent / "csrc"
_SOURCES = {"cpu": "involution2d_cpu.cpp", "cuda": "involution2d_cuda.cu"}
_COMPLETE = "complete"  # the file that marks a finished build
# Of x86's flags of /proc/cpuinfo, what compilers use without being asked; of Arm's features all but "evtstrm" are that.
_INSTRUCTIONS = (
    r"(?!evtstrm)"
    if platform.machine() in ("arm64", "aarch64")
    else r"s?sse|avx|fma|f16c|bmi|abm|popcnt|movbe|gfni|adx"
)

_lock = threading.Lock()
_loaded: dict[str, Path] = {}
_failed: dict[str, str] = {}


def load(device_type: str) -> bool:
    """Loads the compiled kernels for `device_type` ("cpu" or "cuda"), compiling them first where that was not done.

    Returns whether they are there. The first failure warns with the reason; later calls answer at once.
    """
    if device_type in _loaded or _came_along(device_type):
        return True
    if device_type in _failed or device_type not in _SOURCES:
        return False
    with _lock:
        if device_type not in _loaded and device_type not in _failed:
            try:
                library = _find(device_type) or build(device_type)
                torch.ops.load_library(library)
                _loaded[device_type] = library
            except Exception as error:  # whatever goes wrong, the reference can take over
                _failed[device_type] = str(error)
                warnings.warn(
                    f"involution runs on {device_type} as plain PyTorch, slower and with far more memory, because its "
                    f"compiled kernels cannot be used: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return device_type in _loaded


def build(device_type: str) -> Path:
    """Compiles and loads the library for `device_type` unless it is there, and returns its path.

    CUDA code is made for the GPUs of this machine, or for `TORCH_CUDA_ARCH_LIST` where that is set ("8.0;9.0+PTX").
    Any number of processes may do this at the same time: one compiles, the others wait for it.

    Raises:
        RuntimeError: it cannot be compiled here; the message says why and what helps.
    """
    return build_as(_library_name(device_type), device_type)


def build_as(name: str, device_type: str, cflags: list[str] | None = None) -> Path:
    """`build` under a name that has to tell everything that the library depends on, and with these compiler flags.

    Where flags are given, and `INVOLUTION_NAMESPACE` is not among them, the name is the operators' namespace as well.
    """
    directory = _cache_directory() / name
    library = directory / f"{name}.so"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "build.lock")
        lock.acquire()
    except OSError as error:
        raise RuntimeError(
            f"{directory} cannot be written ({error}). Set TORCH_EXTENSIONS_DIR to a folder that can"
        ) from error
    with lock:
        if not (directory / _COMPLETE).exists():
            _compile(device_type, name, directory, cflags)
            (directory / _COMPLETE).touch()
    return library


def show_config() -> str:
    """Says which implementation runs on each kind of device, and why not the compiled one where it does not.

    Compiles nothing: what has not been needed yet is reported as such.
    """
    lines = [f"involution with torch {torch.__version__}"]
    for device_type in _SOURCES:
        if device_type in _loaded:
            state = f"compiled ({_loaded[device_type]})"
        elif _came_along(device_type):
            state = "compiled, came with the kernel"
        elif device_type in _failed:
            state = f"plain PyTorch, because {_failed[device_type]}"
        elif device_type == "cuda" and not torch.cuda.is_available():
            state = "no device"
        elif library := _find(device_type):
            state = f"compiled, not loaded yet ({library})"
        else:
            obstacle = _obstacle(device_type)
            state = f"plain PyTorch, because {obstacle}" if obstacle else "to be compiled at first use"
        lines.append(f"  {device_type}: {state}")
    lines.append("  other devices: plain PyTorch")
    return "\n".join(lines)


def _came_along(device_type: str) -> bool:
    """Whether the kernels were there without being loaded here: in a kernel from the Hub, `_ops` may bring them."""
    if device_type not in _SOURCES:
        return False
    return ops.involution2d.default.has_kernel_for_dispatch_key(getattr(torch._C.DispatchKey, device_type.upper()))


def _compile(device_type: str, name: str, directory: Path, cflags: list[str] | None) -> None:
    from torch.utils import cpp_extension

    if obstacle := _obstacle(device_type):
        raise RuntimeError(obstacle)
    # Left by a process that was killed while it compiled; older releases of torch would wait for it for ever.
    (directory / "lock").unlink(missing_ok=True)
    logger.warning("Compiling the involution operator for %s, once on this machine (%s)", device_type, directory)
    start = time.perf_counter()
    if cflags is None:
        cflags = [*_cflags(), f"-DINVOLUTION_NAMESPACE={ops.name}"]
    try:
        with _scripts_on_path():
            cpp_extension.load(
                name,
                [str(_CSRC / _SOURCES[device_type])],
                extra_cflags=cflags,
                extra_cuda_cflags=["-O3", *(flag for flag in cflags if flag.startswith("-D"))],
                extra_ldflags=_cuda_runtime_flags(directory) if device_type == "cuda" else None,
                build_directory=str(directory),
                with_cuda=device_type == "cuda",
                is_python_module=False,
            )
    except Exception as error:
        log = directory / "build.log"
        log.write_text(str(error))
        lines = str(error).splitlines() or [repr(error)]
        summary = next((line for line in lines if "error: " in line), lines[0])
        raise RuntimeError(f"compilation failed: {summary.strip()} (see {log})") from error
    logger.warning("Compiled the involution operator for %s in %.0f s", device_type, time.perf_counter() - start)


def _cflags() -> list[str]:
    flags = ["-O3", "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"]
    version = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True).stdout
    if "clang" not in version:
        # Makes at::parallel_for parallel. OpenMP is not linked: the runtime that torch brings is the one to use, since a
        # second one would keep a second pool of spinning threads. Clang's needs another runtime than torch has: there
        # the kernels run on one thread.
        flags.append("-fopenmp")
    return flags


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


def _cuda_runtime_flags(directory: Path) -> list[str]:
    """Links to the CUDA runtime that torch has loaded: the same one at run time, and there on machines whose toolkit
    lacks the library or where torch looks for it in the wrong place (it goes by the path of nvcc)."""
    maps = Path("/proc/self/maps").read_text().split()
    runtime = next((path for path in maps if Path(path).name.startswith("libcudart.so")), None)
    if runtime is None:
        return []
    link = directory / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(runtime)
    return [f"-L{directory}"]


def _obstacle(device_type: str) -> str | None:
    """What stands in the way of compiling, with its cure, as far as it shows without trying."""
    if sys.platform == "win32":
        return "the kernels need GCC or Clang, which torch does not use on Windows. Use WSL"
    with _scripts_on_path():
        compiler = _compiler()[0]
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler: {compiler!r} is not on PATH. Install g++, or set CXX to a compiler"
        if shutil.which("ninja") is None:
            return "ninja is not on PATH. Install it: pip install ninja"
    if device_type == "cuda":
        from torch.utils import cpp_extension

        if torch.version.cuda is None:
            return "this build of torch has no CUDA. Install a CUDA build of torch"
        cuda_home = cpp_extension.CUDA_HOME
        if cuda_home is None or shutil.which("nvcc", path=os.path.join(cuda_home, "bin")) is None:
            return (
                "there is no nvcc. Install the CUDA toolkit, of the major version that torch was built with "
                f"({torch.version.cuda}), or set CUDA_HOME to it"
            )
    return None


@contextmanager
def _scripts_on_path() -> Iterator[None]:
    """ninja is a Python package; its program lies beside the interpreter, whose environment need not be activated."""
    before = os.environ.get("PATH")
    os.environ["PATH"] = os.pathsep.join(filter(None, [before, os.path.dirname(sys.executable)]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before


def _cache_directory() -> Path:
    # Where torch has its extensions; not asked of torch.utils.cpp_extension, which is slow to import and looks for CUDA.
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")


def _library_name(device_type: str) -> str:
    return "_".join(["involution", device_type, _key(device_type), *_architectures(device_type)])


def _key(device_type: str) -> str:
    """Changes with everything that a library depends on but the GPU architectures, which its name tells."""
    digest = hashlib.sha256()
    for source in [*sorted(_CSRC.iterdir()), Path(__file__)]:
        digest.update(source.read_bytes())
    machine = f"{platform.system()} {platform.machine()} {platform.libc_ver()}"
    digest.update(f"{ops.name} {torch.__version__} {torch.version.cuda} {machine}".encode())
    if device_type == "cpu":
        digest.update(_cpu_capability().encode())
    return digest.hexdigest()[:16]


def _cpu_capability() -> str:
    """
    The instructions that a compiler may use for the CPU at hand. A home directory shared by unlike machines holds one
    library for each; machines that differ in anything else, such as a hypervisor or mitigations, share one.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        line = next(line for line in lines if line.lower().startswith(("flags", "features")))
        return " ".join(sorted(flag for flag in line.split() if re.match(_INSTRUCTIONS, flag)))
    except (OSError, StopIteration):
        return platform.processor()


def _architectures(device_type: str) -> list[str]:
    """The GPU architectures to build for, as "sm80"; none for the CPU."""
    if device_type == "cpu":
        return []
    if wanted := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        versions = re.split(r"[ ;]+", wanted.strip(" ;"))
        if strange := [version for version in versions if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", version)]:
            raise RuntimeError(f"TORCH_CUDA_ARCH_LIST has {strange[0]!r}, expected numbers such as '8.0;9.0+PTX'")
        return sorted({f"sm{version.replace('.', '').replace('+', '').lower()}" for version in versions})
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU to compile for. Set TORCH_CUDA_ARCH_LIST, for example to '8.0;9.0'")
    return sorted({f"sm{major}{minor}" for major, minor in _device_capabilities()})


def _device_capabilities() -> list[tuple[int, int]]:
    return [torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())]


def _runs(major: int, minor: int, built_major: str, built_minor: str, ptx: str) -> bool:
    """GPU code runs on its own major architecture, from its own minor version upwards; PTX on all later ones."""
    built = (int(built_major), int(built_minor))
    return (major, minor) >= built and (major == built[0] or ptx != "")


def _find(device_type: str) -> Path | None:
    """A finished library that serves the devices of this machine, if there is one."""
    for marker in _cache_directory().glob(f"involution_{device_type}_{_key(device_type)}*/{_COMPLETE}"):
        name = marker.parent.name
        built = re.findall(r"_sm(\d+)(\d)[af]?(ptx)?", name)
        capabilities = _device_capabilities() if device_type == "cuda" else []
        if all(any(_runs(*capability, *architecture) for architecture in built) for capability in capabilities):
            return marker.parent / f"{name}.so"
    return None
