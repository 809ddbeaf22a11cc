"""Speed of exported models: RedNet-50 in onnxruntime, OpenVINO and AOTInductor against PyTorch and against timm's ResNet-50.

    python benchmarks/export_speed.py --device cpu --output benchmarks/results/export-cpu-DEVICE-DATE

Inference on the CPU at 224 x 224 in float32, in images per second. Each file is exported once, for any batch and size.
In onnxruntime and OpenVINO, involution is standard nodes, or one custom node with our kernels. One multiplication in
place of every involution shows about how fast a runtime can be that writes the generated kernels to memory.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import openvino
import timm
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.export import FORMATS, export_model
from torch import nn
from tqdm import tqdm

from involution.timing import median_seconds
from measure import arguments, report
from networks import multiplication_forward, with_involution


EAGER = "PyTorch, eager"
# What involution is in a file.
STANDARD, CUSTOM, MULTIPLICATION = "standard nodes", "custom node", "one multiplication"
REDNET, RESNET = "RedNet-50", "ResNet-50"
Key = tuple[str, str, str]  # model, involution ("" outside of the two runtimes), and what runs it


def in_pytorch(model: nn.Module) -> Callable:
    def run(images: torch.Tensor):
        with torch.no_grad():
            return model(images.contiguous(memory_format=torch.channels_last))

    return run


def export_plain(model: nn.Module, path: Path) -> None:
    """Exports a network that `rednet.export` does not take, in the same way."""
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 225, 257),),
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        input_names=["pixel_values"],
        dynamo=True,
        verbose=False,
    ).save(path)


def export_all(rednet: nn.Module, resnet: nn.Module, folder: Path) -> dict[tuple[str, str], Path]:
    """Writes files for both runtimes. Returns their paths, without suffix, by model and involution."""
    paths = {}
    with tqdm(total=6, desc="exporting") as progress:
        for involution, words in (("standard", STANDARD), ("custom", CUSTOM)):
            paths[REDNET, words] = folder / involution
            for format in ("onnx", "openvino"):
                path = paths[REDNET, words].with_suffix(FORMATS[format].suffixes[0])
                export_model(copy.deepcopy(rednet), path, format, involution=involution)
                progress.update()
        multiplied = with_involution(rednet, multiplication_forward).fuse()
        multiplied.config.return_dict = False
        for name, words, model in ((REDNET, MULTIPLICATION, multiplied), (RESNET, "", copy.deepcopy(resnet))):
            paths[name, words] = folder / (words or "resnet").replace(" ", "-")
            path = paths[name, words].with_suffix(".onnx")
            export_plain(model, path)
            openvino.save_model(openvino.convert_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
            progress.update()
    return paths


def make_functions(folder: Path, threads: int) -> dict[Key, Callable]:
    """Functions that run a model on images (B, 3, 224, 224)."""
    rednet = RedNetForImageClassification(RedNetConfig(num_labels=1000)).eval().requires_grad_(False)
    resnet = timm.create_model("resnet50").eval().requires_grad_(False)
    functions: dict[Key, Callable] = {}
    for (name, involution), path in export_all(rednet, resnet, folder).items():
        for runtime, format in (("onnxruntime", "onnx"), ("OpenVINO", "openvino")):
            file = path.with_suffix(FORMATS[format].suffixes[0])
            functions[name, involution, runtime] = FORMATS[format].load(file, threads)
    export_model(copy.deepcopy(rednet), folder / "rednet.pt2", "aoti")
    functions[REDNET, "", "AOTInductor"] = FORMATS["aoti"].load(folder / "rednet.pt2", threads)
    for name, model in ((REDNET, rednet), (RESNET, resnet)):
        functions[name, "", EAGER] = in_pytorch(model.to(memory_format=torch.channels_last))
    functions[REDNET, "", "PyTorch, `fuse()`"] = in_pytorch(copy.deepcopy(rednet).fuse())
    return functions


def make_rows(times: dict[Key, float], batch: int) -> list[dict]:
    rows = []
    for (model, involution, runtime), time in sorted(times.items()):
        peer = times.get((RESNET, "", runtime)) if model == REDNET else None
        rows.append({
            "model": model,
            "involution": involution,
            "batch": batch,
            "in": runtime,
            "images/s": f"{batch / time:.1f}",
            "against PyTorch, eager": f"{times[model, '', EAGER] / time:.2f} x as fast",
            "against ResNet-50 in the same": "" if peer is None else f"{peer / time:.2f} x as fast",
        })  # fmt: skip
    return rows


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
            rows += make_rows(times, batch)
    packages = ("timm", "onnx", "onnxruntime", "openvino")
    report("RedNet-50 exported, 224 x 224, float32, on the CPU", rows, options, packages)


if __name__ == "__main__":
    main()
