"""The C++ programs of docs/cpp, built with the commands in their comments."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from involution import runtimes


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
import onnx_nodes  # noqa: E402


pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def commands(source: Path) -> dict[str, list[str]]:
    """The commands in the comment at the start of a program, by the name of what they run."""
    lines = re.findall(r"^//   (.+)$", source.read_text(), re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return {next(word for word in line if "=" not in word): line for line in words}


@pytest.fixture
def folder(root, tmp_path) -> Path:
    """A folder with the program, and with the files of a release of onnxruntime that it needs."""
    shutil.copy(root / "docs/cpp/onnxruntime.cpp", tmp_path)
    (tmp_path / "ONNXRUNTIME/include").mkdir(parents=True)
    (tmp_path / "ONNXRUNTIME/lib").mkdir()
    shutil.copy(root / "tests/support/onnxruntime_cxx_api.h", tmp_path / "ONNXRUNTIME/include")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "ONNXRUNTIME/lib" / name).symlink_to(library)
    return tmp_path


def write_model(path: Path) -> None:
    """Logits of (1, 3, 224, 224): the means of the channels after an involution."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kernel = np.random.default_rng(0).standard_normal((1, 1, 3, 3, 224, 224), np.float32)
    window = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    nodes = [
        helper.make_node("Involution2d", ["pixel_values", "kernel"], ["features"], domain="rednet", **window),
        helper.make_node("ReduceMean", ["features"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    values = [
        helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [1, 3, 224, 224]),
        helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 3]),
    ]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [numpy_helper.from_array(kernel, "kernel")])
    path.write_bytes(onnx_nodes.save_graph(graph))


def test_onnxruntime_program(root, folder):
    write_model(folder / "rednet.onnx")
    picture = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    picture.tofile(folder / "picture.bin")
    (logits,) = onnx_nodes.session(str(folder / "rednet.onnx")).run(None, {"pixel_values": picture})

    documented = commands(root / "docs/cpp/onnxruntime.cpp")
    subprocess.run(documented["c++"], cwd=folder, check=True)
    setting, *command = documented["./classify"]
    name, value = setting.split("=")
    command = [runtimes.onnxruntime_library() if word == "LIBRARY" else word for word in command]
    start = {"cwd": folder, "env": {**os.environ, name: value}, "capture_output": True, "text": True}
    result = subprocess.run(command, **start)
    assert result.returncode == 0, result.stderr
    match = re.fullmatch(r"class (\d) with logit (\S+)\n", result.stdout)
    assert int(match[1]) == logits.argmax() and float(match[2]) == pytest.approx(logits.max(), rel=1e-4)

    command[-2:] = [str(folder / "missing.so"), "picture.bin"]
    failed = subprocess.run(command, **start)
    assert failed.returncode == 1 and "missing.so" in failed.stderr
