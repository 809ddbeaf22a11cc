"""Compiles the operator's C++ and CUDA sources at first use and loads them.

There is one library for the CPU and one for CUDA, each compiled once per machine, torch release, compiler and version
of the sources, in torch's own cache of extensions (`TORCH_EXTENSIONS_DIR`). A compiler that refuses the sources is not
asked again until it, its environment or the sources change. Without a library, one warning gives the reason and the
cure, and the operator runs as the reference in plain PyTorch.
"""

import errno
import fnmatch
import functools
import hashlib
import json
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
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock

from ._ops import ops


logger = logging.getLogger(__name__)

_CSRC = Path(__file__).parent / "csrc"
_SOURCES = {"cpu": "involution2d_cpu.cpp", "cuda": "involution2d_cuda.cu"}
_COMPLETE = "complete"  # the file that marks a finished build
_ANY_COMPILER = "????????"  # a pattern for what tells the compilers of a library in its name
_FAILURE = "failure.json"  # the file that records a failed one, for processes that waited for it and for later ones
# What compilers read besides their arguments. A recorded failure stands only while all of it is the same.
_ENVIRONMENT = (
    ("PATH", "CXX", "CC", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "LD_LIBRARY_PATH")
    + ("COMPILER_PATH", "GCC_EXEC_PREFIX", "SDKROOT", "MACOSX_DEPLOYMENT_TARGET", "CONDA_BUILD_SYSROOT")
    + ("CUDA_HOME", "CUDA_PATH", "PYTORCH_NVCC", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
)
# What a compiler reports when it did not get as far as to refuse the sources: the next start may find more memory or
# space, or a header that was installed in the meantime. "code=1.." is ninja on a program that a signal ended.
_TRANSIENT = re.compile(
    r"No space left|quota exceeded|Input/output error|Read-only file system|Stale file handle|No such file or directory"
    r"|cannot find -l|[Pp]ermission denied|temporarily unavailable|Too many open files|[Oo]ut of memory|bad_alloc"
    r"|[Cc]annot allocate memory|memory exhausted|signal terminated|Killed|interrupted by user|code=1(29|3\d|4\d)"
)
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
    """Loads the compiled kernels for `device_type` ("cpu" or "cuda"), after compiling them if that is still to be done.

    Returns whether they are loaded. The first failure warns with the reason; later calls return at once.
    """
    if device_type in _loaded or _came_along(device_type):
        return True
    if device_type in _failed or device_type not in _SOURCES:
        return False
    with _lock:
        if device_type not in _loaded and device_type not in _failed:
            try:
                library = _find(device_type) or _build_or_substitute(device_type)
                _load_library(library)
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
    """Compiles the library for `device_type` unless that was done, and returns its path.

    CUDA code is compiled for the GPUs of this machine, or for `TORCH_CUDA_ARCH_LIST` if that is set ("8.0;9.0+PTX").
    Any number of processes may do this at the same time: one compiles, the others wait for its library or its failure.

    Raises:
        RuntimeError: it cannot be compiled here; the message gives the reason and the cure.
    """
    if (library := _newest(_name(device_type, compilers(device_type) or _ANY_COMPILER))) is not None:
        return library
    return build_as(_library_name(device_type), device_type)


def build_as(name: str, device_type: str, cflags: list[str] | None = None, retry: bool = True) -> Path:
    """`build` under a name that has to contain everything that the library depends on, and with these compiler flags.

    If flags are given, and `INVOLUTION_NAMESPACE` is not among them, the name is the operators' namespace as well.
    Without `retry`, a failure that would only repeat itself is raised from its record, and nothing is compiled.
    """
    directory = _cache_directory() / name
    library = directory / f"{name}.so"
    complete = directory / _COMPLETE
    if os.path.exists(complete):  # without the lock: a finished library may lie in a folder that cannot be written
        return library
    failure = _recorded_failure(directory, device_type)
    if failure and failure["permanent"] and not retry:
        raise RuntimeError(failure["reason"])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "build.lock")
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise RuntimeError(_not_writable(directory, error)) from error
    with lock:
        if complete.exists():
            return library
        latest = _recorded_failure(directory, device_type)
        if latest and latest != failure:  # of the process that this one waited for
            raise RuntimeError(latest["reason"])
        try:
            _compile(device_type, name, directory, cflags)
            complete.touch()
        except OSError as error:
            raise RuntimeError(_not_writable(directory, error)) from error
        (directory / _FAILURE).unlink(missing_ok=True)
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
        else:
            try:
                state = _prospect(device_type)
            except RuntimeError as error:
                state = f"plain PyTorch, because {error}"
        lines.append(f"  {device_type}: {state}")
    lines.append("  other devices: plain PyTorch")
    return "\n".join(lines)


def _prospect(device_type: str) -> str:
    """What the first use will do. Raises RuntimeError, with reason and cure, if it cannot load compiled kernels."""
    if library := _find(device_type):
        return f"compiled, not loaded yet ({library})"
    name = _library_name(device_type)
    failure = _recorded_failure(_cache_directory() / name, device_type)
    reason = failure["reason"] if failure and failure["permanent"] else _obstacle(device_type)
    if reason is None:
        return "to be compiled at first use"
    if library := _find(device_type, _ANY_COMPILER):
        return f"compiled by another compiler, not loaded yet ({library})"
    raise RuntimeError(reason)


def _came_along(device_type: str) -> bool:
    """Whether the kernels were there without being loaded here: in a kernel from the Hub, `_ops` may bring them."""
    if device_type not in _SOURCES:
        return False
    return ops.involution2d.default.has_kernel_for_dispatch_key(getattr(torch._C.DispatchKey, device_type.upper()))


def _build_or_substitute(device_type: str) -> Path:
    """The library of this machine's compiler, or one that another compiler made if this one's cannot be made."""
    try:
        return build_as(_library_name(device_type), device_type, retry=False)
    except RuntimeError as error:
        if (library := _find(device_type, _ANY_COMPILER)) is None:
            raise
        logger.warning("%s; the involution operator for %s is loaded from %s", error, device_type, library)
        return library


def _load_library(library: Path) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        cure = f"remove {library.parent} to compile it again"
        if _forbids_execution(library.parent):
            cure = "set TORCH_EXTENSIONS_DIR to a folder on a file system that is not mounted noexec"
        raise RuntimeError(f"{library} cannot be loaded ({error}): {cure}") from error


def _compile(device_type: str, name: str, directory: Path, cflags: list[str] | None) -> None:
    from torch.utils import cpp_extension

    if obstacle := _obstacle(device_type):
        raise RuntimeError(obstacle)
    if _forbids_execution(directory):
        raise RuntimeError(
            f"{directory} is on a file system that is mounted noexec, from where no library can be loaded. Set "
            "TORCH_EXTENSIONS_DIR to a folder on another one"
        )
    # Left by a process that was killed while it compiled; older releases of torch would wait for it for ever.
    (directory / "lock").unlink(missing_ok=True)
    logger.warning("Compiling the involution operator for %s, once on this machine (%s)", device_type, directory)
    start = time.perf_counter()
    if cflags is None:
        cflags = [*_cflags(), f"-DINVOLUTION_NAMESPACE={ops.name}"]
    try:
        with _scripts_on_path(), _quoted_library_path():
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
        # Of the folder, unless there are no resources for a process; errors of the loader have no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM, errno.EAGAIN, errno.EMFILE):
            raise
        raise RuntimeError(_record_failure(directory, device_type, error)) from error
    logger.warning("Compiled the involution operator for %s in %.0f s", device_type, time.perf_counter() - start)


def _record_failure(directory: Path, device_type: str, error: Exception) -> str:
    """Writes down why the compilation failed, for this and other processes, and returns it."""
    output = str(error) or repr(error)
    lines = output.splitlines()
    transient = next((line for line in lines if _TRANSIENT.search(line)), None)
    summary = transient or next((line for line in lines if "error: " in line), lines[0])
    reason = f"compilation failed: {summary.strip()}"
    with suppress(OSError):
        _write(directory / "build.log", output)
        reason += f" (see {directory / 'build.log'})"
    # Compilers that ran to their end, and the loader, would say the same again; torch's own checks cost no time.
    ended = isinstance(error, OSError) or isinstance(error.__cause__, subprocess.CalledProcessError)
    permanent = ended and transient is None
    if permanent:
        again = " or run `python -m involution.build`" if ops.name == "involution" else ""
        reason += (
            f". Not repeated while compiler, environment and sources are the same: to try again, remove "
            f"{directory / _FAILURE}{again}"
        )
    else:
        if transient and re.search("No space left|quota exceeded", transient):
            reason += ". Set TORCH_EXTENSIONS_DIR, and TMPDIR for temporary files, to folders with more space"
        reason += ". The next start tries again"
    record = {"key": _failure_key(device_type), "permanent": permanent, "reason": reason, "attempt": uuid.uuid4().hex}
    with suppress(OSError):
        _write(directory / _FAILURE, json.dumps(record, indent=2) + "\n")
    return reason


def _recorded_failure(directory: Path, device_type: str) -> dict | None:
    """The last failure there, if it happened with this compiler in this environment."""
    try:
        record = json.loads((directory / _FAILURE).read_text())
        return record if record["key"] == _failure_key(device_type) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _failure_key(device_type: str) -> str:
    """Changes with whatever may let a compiler accept what it refused, besides what is in the name of a library."""
    digest = hashlib.sha256(f"{sys.prefix} {torch.__file__} {device_type}".encode())
    digest.update(repr([os.environ.get(name) for name in _ENVIRONMENT]).encode())
    with suppress(OSError), _scripts_on_path():
        status = os.stat(shutil.which(_compiler()[0]) or "")
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _not_writable(directory: Path, error: Exception) -> str:
    return f"{directory} cannot be written ({error}). Set TORCH_EXTENSIONS_DIR to a folder that can"


def _forbids_execution(directory: Path) -> bool:
    return sys.platform == "linux" and bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)


def _cflags() -> list[str]:
    flags = ["-O3", "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"]
    if "clang" not in (_version(_compiler()) or ""):
        # Makes at::parallel_for parallel. OpenMP is not linked: the runtime that torch brings is the one to use, since a
        # second one would keep a second pool of spinning threads. Clang's needs another runtime than torch has: there
        # the kernels run on one thread.
        flags.append("-fopenmp")
    return flags


def _compiler() -> list[str]:
    command = os.environ.get("CXX", "c++")
    if shutil.which(command):  # a path may have a space in it
        return [command]
    try:
        return shlex.split(command) or [command]
    except ValueError:  # a quote that does not end; no program has this name
        return [command]


def _version(command: list[str]) -> str | None:
    """What a compiler says of itself, or None if there is no such program."""
    with _scripts_on_path():
        program = shutil.which(command[0])
    return None if program is None else _output(program, *command[1:], "--version")


@functools.cache
def _output(program: str, *arguments: str) -> str:
    try:
        environment = {**os.environ, "LC_ALL": "C"}  # the same words in all languages
        command = [program, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace").stdout
    except OSError:  # no program for this machine; the compilation will tell
        return ""


def compilers(device_type: str) -> str | None:
    """Changes with the compilers that make a library, or None if one is missing."""
    # GCC starts with the name that it was called by, but g++ and c++ are one compiler.
    versions = [re.sub(r"^\S+ \(", "(", version) if (version := _version(_compiler())) else version]
    if device_type == "cuda":
        from torch.utils import cpp_extension

        versions.append(_version([os.path.join(cpp_extension.CUDA_HOME or "", "bin", "nvcc")]))
        if host_compiler := os.environ.get("CC"):  # which torch hands to nvcc
            versions.append(_version([host_compiler]))
    if None in versions:
        return None
    return hashlib.sha256(repr(versions).encode()).hexdigest()[: len(_ANY_COMPILER)]


def _cuda_runtime_flags(directory: Path) -> list[str]:
    """Links to the CUDA runtime that torch has loaded: the same one at run time, and there on machines whose toolkit
    lacks the library or where torch looks for it in the wrong place (it goes by the path of nvcc)."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    # A line is "address permissions offset device inode path"; the path may have spaces in it.
    paths = [fields[5] for line in maps if len(fields := line.split(maxsplit=5)) == 6]
    runtime = next((path for path in paths if Path(path).name.startswith("libcudart.so")), None)
    if runtime is None:
        return []
    link = directory / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(runtime)
    return [f"-L{shlex.quote(str(directory))}"]


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
        if shlex.quote(cuda_home) != cuda_home:
            return (
                f"the CUDA toolkit is in {cuda_home!r}, a path that torch does not quote when it links. Set CUDA_HOME "
                "to a symbolic link to it whose path has no spaces or other characters special to a shell"
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


@contextmanager
def _quoted_library_path() -> Iterator[None]:
    """torch writes the path of its libraries into the linker's command line as it is, also if it has spaces in it."""
    from torch.utils import cpp_extension

    before = cpp_extension.TORCH_LIB_PATH
    cpp_extension.TORCH_LIB_PATH = shlex.quote(before)
    try:
        yield
    finally:
        cpp_extension.TORCH_LIB_PATH = before


def _cache_directory() -> Path:
    # Where torch has its extensions; not asked of torch.utils.cpp_extension, which is slow to import and looks for CUDA.
    if directory := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(directory).absolute()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "torch_extensions"
    except RuntimeError as error:  # as in a container that is started for a user id without an account
        raise RuntimeError(
            f"user {os.getuid()} has no home folder to cache them in. Set TORCH_EXTENSIONS_DIR to a folder that can be "
            "written"
        ) from error


def _library_name(device_type: str) -> str:
    made_by = compilers(device_type)
    if made_by is None:
        raise RuntimeError(_obstacle(device_type) or f"there is no C compiler: CC is {os.environ.get('CC')!r}")
    return _name(device_type, made_by)


def _name(device_type: str, made_by: str) -> str:
    return "_".join(["involution", device_type, _key(device_type), made_by, *_architectures(device_type)])


def _key(device_type: str) -> str:
    """Changes with everything that a library depends on, but GPU architectures and compilers, which its name has."""
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


def _find(device_type: str, made_by: str | None = None) -> Path | None:
    """A finished library that runs on the devices of this machine, if there is one.

    It is one of the compilers at hand, or of any if `made_by` is `_ANY_COMPILER` or one is missing, as in images and
    on the nodes of a cluster.
    """
    made_by = made_by or compilers(device_type) or _ANY_COMPILER
    capabilities = _device_capabilities() if device_type == "cuda" else []

    def serves(library: Path) -> bool:
        built = re.findall(r"_sm(\d+)(\d)[af]?(ptx)?", library.name)
        return all(any(_runs(*capability, *architecture) for architecture in built) for capability in capabilities)

    return _newest(f"involution_{device_type}_{_key(device_type)}_{made_by}*", serves)


def _newest(pattern: str, serves: Callable[[Path], bool] = lambda _: True) -> Path | None:
    """Of the finished libraries whose folders match `pattern`, the one that was finished last."""
    cache, found = _cache_directory(), []
    with suppress(OSError):  # a folder that is not there, or that this user cannot read
        for name in fnmatch.filter(os.listdir(cache), pattern):
            library = cache / name / f"{name}.so"
            with suppress(OSError):
                found.append((os.stat(cache / name / _COMPLETE).st_mtime_ns, library))
    return max([entry for entry in found if serves(entry[1])], default=(0, None))[1]
