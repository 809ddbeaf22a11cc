"""Exports a RedNet to ONNX, to OpenVINO, to a program of torch.export, or to a package of AOTInductor."""

import copy
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rednet.export import onnx, openvino, torch_export
from rednet.export.onnx_nodes import translation_table
from rednet.export.variants import DTYPES, INVOLUTIONS, TOLERANCES, Variant
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Format:
    """
    A kind of exported file.

    Attributes:
        suffixes: of the names of its files. The first is that of the file which is loaded.
        packages: that the format needs besides torch.
        packages_for_int8: that it needs as well, to quantize.
        variants: whether `involution` and `dtype` of `export_model` can be chosen, and a file has no device. A `.pt2`
            always has the operator, in float32 and on one device.
        write: takes the model, pixel values (B, C, H, W) to trace it with, the names of its outputs, the variant, and a
            path.
        load: takes the path and the number of threads (None: that of torch), and returns a function from pixel values
            to outputs.
    """

    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    packages_for_int8: tuple[str, ...]
    variants: bool
    write: Callable[[RedNetPreTrainedModel, Tensor, list[str], Variant, Path], None]
    load: Callable[[Path, int | None], Callable[[Tensor], Any]]


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "onnx": Format((".onnx",), ONNX, (), True, onnx.write, onnx.load),
    "openvino": Format((".xml", ".bin"), (*ONNX, "openvino"), ("nncf",), True, openvino.write, openvino.load),
    "torch_export": Format((".pt2",), (), (), False, torch_export.write_program, torch_export.load_program),
    "aoti": Format((".pt2",), (), (), False, torch_export.write_package, torch_export.load_package),
}


def check_output(
    path: Path,
    format: str,
    device: str = "cpu",
    involution: str = "standard",
    dtype: str = "float32",
    has_calibration: bool = False,
) -> None:
    """
    Checks the arguments of `export_model`, before a model is loaded.

    Raises:
        ModuleNotFoundError: a package that the format needs is not installed.
        ValueError: `format`, `involution` or `dtype` is unknown, or the other arguments do not fit them.
    """
    for name, value, known in (
        ("format", format, FORMATS),
        ("involution", involution, INVOLUTIONS),
        ("dtype", dtype, DTYPES),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {list(known)}")
    kind = FORMATS[format]
    check_packages(format, kind.packages + (kind.packages_for_int8 if dtype == "int8" else ()))
    if path.suffix != kind.suffixes[0]:
        raise ValueError(f"path is {path}, expected a name that ends in {kind.suffixes[0]} for format {format!r}")
    for file in _files(path, format):
        if file.is_dir():
            raise ValueError(f"path is {file}, which is a folder, expected a file")
    if kind.variants and torch.device(device).type != "cpu":
        raise ValueError(f"device is {device!r}, expected 'cpu' for format {format!r}, whose files have no device")
    for name, value, only in (("involution", involution, "standard"), ("dtype", dtype, "float32")):
        if not kind.variants and value != only:
            raise ValueError(f"{name} is {value!r}, expected {only!r} for format {format!r}")
    if has_calibration != (dtype == "int8"):
        raise ValueError(
            "dtype is 'int8', which needs calibration data: pictures like those that the model will see"
            if dtype == "int8"
            else f"dtype is {dtype!r}, which takes no calibration data: only 'int8' does"
        )


def check_packages(format: str, packages: Sequence[str]) -> None:
    """Raises ModuleNotFoundError with the command that installs them, if some `packages` are not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ModuleNotFoundError(
            f"format {format!r} needs {' and '.join(missing)}, which is not installed: pip install {' '.join(packages)}"
        )


def export_model(
    model: RedNetPreTrainedModel,
    path: Path,
    format: str,
    device: str = "cpu",
    involution: str = "standard",
    dtype: str = "float32",
    calibration: Sequence[Tensor] = (),
) -> tuple[float, float]:
    """
    Exports a fused copy of a model, and compares the file with the model before it is moved to `path`.

    The exported model takes pixel_values (B, C, H, W) in float32, with any batch size, height and width, and returns
    the outputs of the model as a tuple, in float32. A program of torch.export refuses pictures whose last feature map
    has a height or width of 1: up to 32 pixels, if all strides together are 32.

    Args:
        model: the model, which is not changed.
        path: the file to write. If it exists, it is overwritten. After an error it is unchanged. OpenVINO has a second
            file beside it, with the suffix .bin.
        format: `"onnx"`, `"openvino"`, `"torch_export"` or `"aoti"`.
        device: the device of a program or package. The other files have no device.
        involution: of ONNX and OpenVINO. `"standard"`: nodes that every runtime has. `"custom"`: one node, for which a
            runtime needs the library of `involution.runtimes`.
        dtype: of ONNX and OpenVINO. `"float32"`; `"float16"`, for weights of half the size (in ONNX the computation is
            in float16 as well, if the device has it); `"int8"`, for quantized convolutions, with the rest in float32.
        calibration: for int8, batches of pixel values (B, C, H, W) of some hundred pictures in all.

    Returns:
        The largest difference between the outputs of model and file on pixel values of several sizes, and the largest
        output of the model.

    Raises:
        ModuleNotFoundError, ValueError: as `check_output`.
        RuntimeError: the outputs of the file differ from those of the model.
    """
    check_output(path, format, device, involution, dtype, len(calibration) > 0)
    variant = Variant(involution, dtype, calibration)
    model = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    # Every stage halves an odd size (225 = 7 * 32 + 1). From even sizes Inductor concludes that sizes are always even,
    # and rounds odd ones down in poolings. A size of 1 would be traced as a constant.
    traced = torch.zeros(2, model.config.num_channels, 225, 257, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix=".export.", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        pictures = _pictures(variant, model.config.num_channels, device)
        outputs = [model(picture, return_dict=True) for picture in pictures]
        # The output classes of Transformers may not be available where the file is loaded.
        model.fuse().config.return_dict = False
        FORMATS[format].write(model, traced, _names(outputs[0]), variant, temporary)
        expected = [tree_leaves(tuple(output.values())) for output in outputs]
        result = _compare(FORMATS[format].load(temporary, None), pictures, expected, TOLERANCES[dtype])
        # The file that is loaded is removed first and comes last: without it, nothing is taken for complete.
        if len(FORMATS[format].suffixes) > 1:
            path.unlink(missing_ok=True)
        for name in reversed(FORMATS[format].suffixes):
            os.replace(temporary.with_suffix(name), path.with_suffix(name))
    return result


def _files(path: Path, format: str) -> list[Path]:
    return [path.with_suffix(suffix) for suffix in FORMATS[format].suffixes]


def _pictures(variant: Variant, channels: int, device: str) -> list[Tensor]:
    """
    Pixel values to compare file and model with: noise of several sizes, in batches of 1, 3 and 16. For int8,
    calibration data, because the ranges of noise are not those of pictures.
    """
    if variant.dtype == "int8":
        batch = variant.calibration[0]
        return [batch, batch[:1, :, 1:, 1:]]
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, channels, 197, 251), (3, channels, 63, 100), (16, channels, 65, 47))
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def _compare(
    run: Callable[[Tensor], Any], pictures: list[Tensor], expected: list[list[Tensor]], tolerance: float
) -> tuple[float, float]:
    """
    Returns the largest difference, and the largest expected value.

    Args:
        run: runs the file.
        expected: for each of the `pictures`, the outputs of the model.
        tolerance: the allowed difference of an output, relative to its largest value.

    Raises:
        RuntimeError: an output of the file has another shape, or differs by more.
    """
    difference = largest = 0.0
    for picture, outputs in zip(pictures, expected, strict=True):
        for output, result in zip(outputs, tree_leaves(run(picture)), strict=True):
            if output.shape != result.shape:
                raise RuntimeError(
                    f"the exported model returns {tuple(result.shape)} for pixel values {tuple(picture.shape)}, expected "
                    f"{tuple(output.shape)}"
                )
            error, scale = (output - result).abs().max().item(), output.abs().max().item()
            if not error <= tolerance * scale:  # so that NaN is refused
                raise RuntimeError(
                    f"the exported model differs from the model by {error:.1e} for pixel values {tuple(picture.shape)}, "
                    f"expected at most {tolerance:.0e} of the largest output, {scale:.1e}"
                )
            difference, largest = max(difference, error), max(largest, scale)
    return difference, largest


def _names(outputs: dict[str, Tensor | tuple[Tensor, ...]]) -> list[str]:
    """Returns `logits`, or `feature_maps.0`, `feature_maps.1` for an output of several tensors."""
    return [
        name if isinstance(value, Tensor) else f"{name}.{n}"
        for name, value in outputs.items()
        for n in range(1 if isinstance(value, Tensor) else len(value))
    ]


__all__ = [
    "DTYPES",
    "FORMATS",
    "INVOLUTIONS",
    "Variant",
    "check_output",
    "check_packages",
    "export_model",
    "translation_table",
]
