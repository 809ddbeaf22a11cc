"""The operator in onnxruntime and OpenVINO: libraries that these runtimes load.

    session_options.register_custom_ops_library(involution.runtimes.onnxruntime_library())
    core.add_extension(involution.runtimes.openvino_extension())

A library is compiled at the first call, and cached like that for PyTorch: in seconds if the latter was compiled here,
otherwise in about a minute. The command `python -m involution.build onnxruntime openvino` compiles ahead of time. The
wheel for x86-64 Linux contains the library for onnxruntime.
"""

from .. import extension


__all__ = ["onnxruntime_library", "openvino_extension"]


def onnxruntime_library() -> str:
    """The path of the library for `SessionOptions.register_custom_ops_library`, for onnxruntime 1.17 and later.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
        RuntimeError: the library cannot be compiled; the message gives the reason and the cure.
    """
    return str(extension.find_or_build("onnxruntime"))


def openvino_extension() -> str:
    """The path of the library for `openvino.Core.add_extension`. It serves the installed release of OpenVINO only.

    Raises:
        ModuleNotFoundError: openvino is not installed.
        RuntimeError: the library cannot be compiled; the message gives the reason and the cure.
    """
    return str(extension.find_or_build("openvino"))
