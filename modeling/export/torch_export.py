"""Programs of torch.export, and packages that AOTInductor compiles from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rednet.export.variants import Variant
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor


def write_program(
    model: RedNetPreTrainedModel, pixel_values: Tensor, output_names: list[str], variant: Variant, path: Path
) -> None:
    torch.export.save(_program(model, pixel_values), path)


def load_program(path: Path, threads: int | None = None) -> Callable[[Tensor], Any]:
    return torch.export.load(path).module()


def write_package(
    model: RedNetPreTrainedModel, pixel_values: Tensor, output_names: list[str], variant: Variant, path: Path
) -> None:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # transformers wraps it without types
    program = _program(model, pixel_values)
    # Frozen weights are faster at large batches. In channels-last with a single channel they give wrong results (2.15).
    settings = {"freezing": pixel_values.shape[1] > 1}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def load_package(path: Path, threads: int | None = None) -> Callable[[Tensor], Any]:
    package = torch._inductor.aoti_load_package(str(path))
    # The compiled code reads its input as contiguous memory, and does not check that it is.
    return lambda pixel_values: package(pixel_values.contiguous())


def _program(model: RedNetPreTrainedModel, pixel_values: Tensor) -> torch.export.ExportedProgram:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {"pixel_values": {0: dynamic, 2: dynamic, 3: dynamic}}
    return torch.export.export(model, (pixel_values,), dynamic_shapes=shapes)
