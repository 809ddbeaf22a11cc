"""ONNX files, of standard operators only."""

from collections.abc import Callable
from pathlib import Path

import torch
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor


def write(model: RedNetPreTrainedModel, pixel_values: Tensor, output_names: list[str], path: Path) -> None:
    program = torch.onnx.export(
        model,
        kwargs={"pixel_values": pixel_values},
        dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
        input_names=["pixel_values"],
        output_names=output_names,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # with dynamo=True
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # source lines with paths of this machine
    program.save(path)


def load(path: Path) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixel_values: [
        torch.from_numpy(output) for output in session.run(None, {"pixel_values": pixel_values.numpy()})
    ]
