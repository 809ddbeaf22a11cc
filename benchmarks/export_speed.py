"""Speed of exported models: RedNet-50 in onnxruntime, OpenVINO and AOTInductor against PyTorch and against ResNet-50.

    python benchmarks/export_speed.py --device cpu --output benchmarks/results/export-cpu-DEVICE-DATE

Inference on the CPU at 224 x 224 in float32, in images per second. Each file is exported once, for any batch and size.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import openvino
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.export import export_model
from rednet.profile import median_seconds
from torch import nn
from tqdm import tqdm
from transformers import ResNetConfig, ResNetForImageClassification

from measure import arguments, report


EAGER = "PyTorch, eager"


def in_pytorch(model: nn.Module) -> Callable:
    def run(images: torch.Tensor):
        with torch.no_grad():
            return model(images.contiguous(memory_format=torch.channels_last))

    return run


def in_onnxruntime(path: Path, threads: int) -> Callable:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"pixel_values": images.numpy()})


def in_openvino(path: Path, threads: int) -> Callable:
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: compiled(images.numpy())


def export_resnet(model: nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        kwargs={"pixel_values": torch.zeros(2, 3, 225, 257)},
        dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
        input_names=["pixel_values"],
        dynamo=True,
        verbose=False,
    ).save(path)


def make_functions(folder: Path, threads: int) -> dict[tuple[str, str], Callable]:
    """Functions that run a model on images (B, 3, 224, 224), by model and runtime."""
    rednet = RedNetForImageClassification(RedNetConfig(num_labels=1000)).eval()
    resnet = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval().requires_grad_(False)
    functions = {}
    with tqdm(total=3, desc="exporting") as progress:
        for format in ("onnx", "aoti"):
            path = folder / {"onnx": "rednet.onnx", "aoti": "rednet.pt2"}[format]
            export_model(copy.deepcopy(rednet), path, format)
            progress.update()
        export_resnet(resnet, folder / "resnet.onnx")
        progress.update()
    for name, model, path in (
        ("RedNet-50", rednet, folder / "rednet.onnx"),
        ("ResNet-50", resnet, folder / "resnet.onnx"),
    ):
        functions[name, EAGER] = in_pytorch(model.to(memory_format=torch.channels_last))
        functions[name, "onnxruntime"] = in_onnxruntime(path, threads)
        functions[name, "OpenVINO"] = in_openvino(path, threads)
    functions["RedNet-50", "PyTorch, `fuse()`"] = in_pytorch(copy.deepcopy(rednet).fuse())
    functions["RedNet-50", "AOTInductor"] = torch._inductor.aoti_load_package(str(folder / "rednet.pt2"))
    return functions


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    if options.device != "cpu":
        sys.exit(f"error: device is {options.device!r}, expected 'cpu': add --device cpu")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = make_functions(Path(folder), options.threads)
        for batch in (1, options.batch_size):
            images = torch.randn(batch, 3, 224, 224)
            repeats = 3 * options.repeats if batch == 1 else options.repeats
            times = median_seconds({key: lambda run=run: run(images) for key, run in runs.items()}, repeats)
            for (model, runtime), time in sorted(times.items()):
                peer = times.get(("ResNet-50", runtime)) if model == "RedNet-50" else None
                rows.append({
                    "model": model,
                    "batch": batch,
                    "in": runtime,
                    "images/s": f"{batch / time:.1f}",
                    "against PyTorch, eager": f"{times[model, EAGER] / time:.2f} x as fast",
                    "against ResNet-50 in the same": "" if peer is None else f"{peer / time:.2f} x as fast",
                })  # fmt: skip
    packages = ("onnx", "onnxruntime", "openvino")
    report("RedNet-50 exported, 224 x 224, float32, on the CPU", rows, options, packages)


if __name__ == "__main__":
    main()
