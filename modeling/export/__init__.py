"""Exports a RedNet: to ONNX, to a program of torch.export, or to a package of AOTInductor."""

import copy
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rednet import modeling_rednet
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig


# Of the largest value: float32 leaves some 1e-6, an error in the graph far more.
TOLERANCE = 1e-4


def load_model(folder_or_id: str | os.PathLike) -> RedNetPreTrainedModel:
    """
    The model that its configuration names (`architectures`), in float32 and evaluation mode.

    Raises:
        OSError: there is no such folder or repository, or no model in it.
        ValueError: it is not a RedNet.
    """
    config, _ = PreTrainedConfig.get_config_dict(folder_or_id)
    if config.get("model_type") != "rednet":
        raise ValueError(f"{folder_or_id} has model_type {config.get('model_type')!r}, expected 'rednet'")
    name = (config.get("architectures") or ["RedNetForImageClassification"])[0]
    if name not in modeling_rednet.__all__:
        raise ValueError(f"{folder_or_id} has architectures {name!r}, expected one of {modeling_rednet.__all__}")
    return getattr(modeling_rednet, name).from_pretrained(folder_or_id, dtype=torch.float32)


def _export_onnx(model: RedNetPreTrainedModel, pictures: Tensor, names: list[str], path: Path) -> None:
    program = torch.onnx.export(
        model,
        kwargs={"pixel_values": pictures},
        dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
        input_names=["pixel_values"],
        output_names=names,
        dynamo=True,
        verbose=False,
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of Python that it comes from, with the paths of this machine
    program.save(path)


def _run_onnx(path: Path) -> Callable:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: [torch.from_numpy(y) for y in session.run(None, {"pixel_values": pictures.numpy()})]


def _program(model: RedNetPreTrainedModel, pictures: Tensor) -> torch.export.ExportedProgram:
    free = torch.export.Dim.DYNAMIC
    return torch.export.export(model, (pictures,), dynamic_shapes={"pixel_values": {0: free, 2: free, 3: free}})


def _export_program(model: RedNetPreTrainedModel, pictures: Tensor, names: list[str], path: Path) -> None:
    torch.export.save(_program(model, pictures), path)


def _run_program(path: Path) -> Callable:
    return torch.export.load(path).module()


def _export_aoti(model: RedNetPreTrainedModel, pictures: Tensor, names: list[str], path: Path) -> None:
    program = _program(model.to(memory_format=torch.channels_last), pictures)
    # Frozen weights are faster at large batches. In channels-last with a single channel they give wrong results (2.15).
    settings = {"freezing": pictures.shape[1] > 1}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def _run_aoti(path: Path) -> Callable:
    return torch._inductor.aoti_load_package(str(path))


# Format -> suffix, packages that it needs beside torch, and the functions that write and run it.
FORMATS = {
    "onnx": (".onnx", ["onnx", "onnxscript", "onnxruntime"], _export_onnx, _run_onnx),
    "torch_export": (".pt2", [], _export_program, _run_program),
    "aoti": (".pt2", [], _export_aoti, _run_aoti),
}


def check_output(path: Path, format: str, device: str = "cpu") -> None:
    """
    Raises:
        ModuleNotFoundError: a package is not installed that the format needs.
        ValueError: format, device, suffix or folder do not go together.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {list(FORMATS)}")
    suffix, packages, *_ = FORMATS[format]
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ModuleNotFoundError(f"for {format} {' and '.join(missing)} is missing: pip install {' '.join(packages)}")
    if path.suffix != suffix:
        raise ValueError(f"the output is {path}, expected a name that ends in {suffix} for the format {format}")
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder, expected a file")
    if format == "onnx" and torch.device(device).type != "cpu":
        raise ValueError(f"device is {device!r}, but an ONNX file belongs to no device: leave it out")


def export_model(model: RedNetPreTrainedModel, path: Path, format: str, device: str = "cpu") -> tuple[float, float]:
    """
    Writes the file `path`, or nothing. The exported model takes pixel_values (B, C, H, W), float32, and returns what the
    model returns, as a tuple. A program of torch.export refuses pictures whose last feature map is one pixel high or
    wide: sides up to 32 with strides of 32 in all.

    Args:
        model: stays as it is. A copy of it is fused and exported.
        format: `onnx`, `torch_export` or `aoti`.
        device: what a program or package is for; ONNX files belong to none.

    Returns:
        The largest difference between the results of model and file for a random picture, and the largest value.

    Raises:
        ModuleNotFoundError, ValueError: as `check_output`.
        RuntimeError: the file computes something else than the model.
    """
    check_output(path, format, device)
    _, _, write, run = FORMATS[format]
    model = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    channels = model.config.num_channels
    # Every stage halves an odd size (225 = 7 * 32 + 1). Where sizes are even, Inductor takes it that they always are,
    # and pools the odd ones to a size too small; what is 1 the tracer takes for a constant.
    traced = torch.zeros(2, channels, 225, 257, device=device)
    picture = torch.randn(1, channels, 197, 251, generator=torch.Generator().manual_seed(0)).to(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix=".export.", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        outputs = model(picture, return_dict=True)
        # Exported models return tuples: who loads them has not imported the classes of transformers.
        model.fuse().config.return_dict = False
        write(model, traced, _names(outputs), temporary)
        found = tree_leaves(run(temporary)(picture))
        expected = tree_leaves(tuple(outputs.values()))
        difference = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
        largest = max(y.abs().max().item() for y in expected)
        if not difference <= TOLERANCE * largest:
            raise RuntimeError(
                f"the exported model differs from the model by {difference:.1e}, where the largest value is {largest:.1e}"
            )
        os.replace(temporary, path)
    return difference, largest


def _names(outputs) -> list[str]:
    """`logits`, or `feature_maps.0`, `feature_maps.1` where there are several."""
    return [
        name if isinstance(value, Tensor) else f"{name}.{n}"
        for name, value in outputs.items()
        for n in range(1 if isinstance(value, Tensor) else len(value))
    ]
