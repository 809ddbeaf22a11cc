"""The runtimes other than PyTorch that the kernels run in: their releases, and compiler flags for their libraries."""

import importlib
from pathlib import Path
from types import ModuleType


RUNTIMES = ("onnxruntime", "openvino")
SOURCES = Path(__file__).parent / "runtimes"  # of a runtime: those whose names start with its name


def version(runtime: str) -> str:
    """The installed release of a runtime. Raises ModuleNotFoundError if it is not installed."""
    return _package(runtime).__version__


def flags(runtime: str) -> tuple[list[str], list[str]]:
    """The flags of the compiler, and those of the linker, for the headers and libraries of a runtime."""
    if runtime == "onnxruntime":
        return [], []  # its interface is declared in our sources, and passed to the library as a table of functions
    package = Path(str(_package(runtime).__file__)).parent
    libraries = package / "libs"
    names = ("libopenvino.so*", "libopenvino_onnx_frontend.so*", "libtbb.so*")
    paths = [str(path) for name in names for path in sorted(libraries.glob(name))[:1]]
    # The run path is for programs without Python. In Python, the libraries are loaded already.
    return ["-isystem", str(package / "include")], [*paths, f"-Wl,-rpath,{libraries}"]


def _package(runtime: str) -> ModuleType:
    try:
        return importlib.import_module(runtime)
    except ModuleNotFoundError as error:
        if error.name != runtime:
            raise
        raise ModuleNotFoundError(
            f"the operator for {runtime} needs {runtime}: pip install {runtime}", name=runtime
        ) from error
