"""Exports a RedNet to ONNX, to a program of torch.export, or to a package of AOTInductor."""

import copy
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rednet.export import onnx, torch_export
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor
from torch.utils._pytree import tree_leaves


# Allowed difference between file and model, relative to the largest value. Rounding in float32 makes about 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Format:
    """
    A kind of exported file.

    Attributes:
        suffix: of the file name.
        packages: that the format needs besides torch.
        write: takes the model, pixel values (B, C, H, W) to trace it with, the names of its outputs, and a path.
        load: takes the path, and returns a function from pixel values to outputs.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[RedNetPreTrainedModel, Tensor, list[str], Path], None]
    load: Callable[[Path], Callable[[Tensor], Any]]


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), onnx.write, onnx.load),
    "torch_export": Format(".pt2", (), torch_export.write_program, torch_export.load_program),
    "aoti": Format(".pt2", (), torch_export.write_package, torch_export.load_package),
}


def check_output(path: Path, format: str, device: str = "cpu") -> None:
    """
    Checks the arguments of `export_model`, before a model is loaded.

    Raises:
        ModuleNotFoundError: a package that the format needs is not installed.
        ValueError: `format` is unknown, or `path` or `device` does not fit it.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {list(FORMATS)}")
    suffix, packages = FORMATS[format].suffix, FORMATS[format].packages
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ModuleNotFoundError(
            f"format {format!r} needs {' and '.join(missing)}, which is not installed: pip install {' '.join(packages)}"
        )
    if path.suffix != suffix:
        raise ValueError(f"path is {path}, expected a name that ends in {suffix} for format {format!r}")
    if path.is_dir():
        raise ValueError(f"path is {path}, which is a folder, expected a file")
    if format == "onnx" and torch.device(device).type != "cpu":
        raise ValueError(f"device is {device!r}, expected 'cpu' for format 'onnx', whose files have no device")


def export_model(model: RedNetPreTrainedModel, path: Path, format: str, device: str = "cpu") -> tuple[float, float]:
    """
    Exports a fused copy of a model, and compares the file with the model before it is moved to `path`.

    The exported model takes pixel_values (B, C, H, W) in float32, with any batch size, height and width, and returns
    the outputs of the model as a tuple. A program of torch.export refuses pictures whose last feature map has a height
    or width of 1: up to 32 pixels, if all strides together are 32.

    Args:
        model: the model, which is not changed.
        path: the file to write. If it exists, it is overwritten. After an error it is unchanged.
        format: `"onnx"`, `"torch_export"` or `"aoti"`.
        device: the device of a program or package. An ONNX file has no device.

    Returns:
        The largest difference between the outputs of model and file on random pixel values of another size than the
        traced one, and the largest output of the model.

    Raises:
        ModuleNotFoundError, ValueError: as `check_output`.
        RuntimeError: the outputs of the file differ from those of the model.
    """
    check_output(path, format, device)
    model = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    channels = model.config.num_channels
    # Every stage halves an odd size (225 = 7 * 32 + 1). From even sizes Inductor concludes that sizes are always even,
    # and rounds odd ones down in poolings. A size of 1 would be traced as a constant.
    traced = torch.zeros(2, channels, 225, 257, device=device)
    picture = torch.randn(1, channels, 197, 251, generator=torch.Generator().manual_seed(0)).to(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix=".export.", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        outputs = model(picture, return_dict=True)
        # The output classes of Transformers may not be available where the file is loaded.
        model.fuse().config.return_dict = False
        FORMATS[format].write(model, traced, _names(outputs), temporary)
        exported = tree_leaves(FORMATS[format].load(temporary)(picture))
        expected = tree_leaves(tuple(outputs.values()))
        difference = max((a - b).abs().max().item() for a, b in zip(expected, exported, strict=True))
        largest = max(y.abs().max().item() for y in expected)
        if not difference <= TOLERANCE * largest:  # so that NaN is refused
            raise RuntimeError(
                f"the exported model differs from the model by {difference:.1e}, expected at most {TOLERANCE:.0e} of the "
                f"largest output, {largest:.1e}"
            )
        os.replace(temporary, path)
    return difference, largest


def _names(outputs: dict[str, Tensor | tuple[Tensor, ...]]) -> list[str]:
    """Returns `logits`, or `feature_maps.0`, `feature_maps.1` for an output of several tensors."""
    return [
        name if isinstance(value, Tensor) else f"{name}.{n}"
        for name, value in outputs.items()
        for n in range(1 if isinstance(value, Tensor) else len(value))
    ]


__all__ = ["FORMATS", "check_output", "export_model"]
