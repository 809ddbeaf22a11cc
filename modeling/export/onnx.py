"""ONNX files, with involution as standard nodes or as one node of the domain `rednet`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rednet.export.onnx_nodes import DOMAIN, translation_table
from rednet.export.variants import Variant
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor, nn


if TYPE_CHECKING:
    from onnxruntime import SessionOptions


def write(
    model: RedNetPreTrainedModel, pixel_values: Tensor, output_names: list[str], variant: Variant, path: Path
) -> None:
    if variant.dtype != "int8":
        write_float(model, pixel_values, output_names, variant, path)
        return
    floating = path.with_name("float.onnx")
    write_float(model, pixel_values, output_names, variant, floating)
    _quantize(floating, variant, path)


def write_float(
    model: RedNetPreTrainedModel, pixel_values: Tensor, output_names: list[str], variant: Variant, path: Path
) -> None:
    program = torch.onnx.export(
        _Half(model).eval() if variant.dtype == "float16" else model,
        kwargs={"pixel_values": pixel_values},
        dynamic_shapes={"pixel_values": {0: "batch", 2: "height", 3: "width"}},
        input_names=["pixel_values"],
        output_names=output_names,
        dynamo=True,
        verbose=False,
        custom_translation_table=translation_table() if variant.is_custom else None,
    )
    assert program is not None  # with dynamo=True
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # source lines with paths of this machine
    program.save(path)


class _Half(nn.Module):
    """
    A fused model with weights in float16, which takes and returns float32. Scales and shifts of involutions are buffers,
    and stay in float32, in which involutions accumulate.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        for parameter in model.parameters():
            parameter.data = parameter.data.half()

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        outputs = self.model(pixel_values.half())
        return [output.float() for output in torch.utils._pytree.tree_leaves(outputs)]


def load(path: Path, threads: int | None = None) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, session_options(path, threads), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixel_values: [
        torch.from_numpy(output) for output in session.run(None, {name: pixel_values.contiguous().numpy()})
    ]


def session_options(path: Path, threads: int | None = None) -> "SessionOptions":
    """Options for the sessions of a file, with the library of the operator if the file has its nodes."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    if any(node.domain == DOMAIN for node in onnx.load(path, load_external_data=False).graph.node):
        from involution.runtimes import onnxruntime_library

        options.register_custom_ops_library(onnxruntime_library())
    return options


def _quantize(floating: Path, variant: Variant, path: Path) -> None:
    """Quantizes the convolutions of a file by onnxruntime's quantizer."""
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, MinMaxCalibrater, QDQQuantizer, QuantType

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(variant.calibration)

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixel_values": batch.numpy()}

    class Calibrator(MinMaxCalibrater):
        """Its session loads the library of the operator. The session of `quantize_static` does not."""

        def create_inference_session(self) -> None:
            options = session_options(floating)
            options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
            self.infer_session = InferenceSession(
                self.augmented_model_path, options, providers=["CPUExecutionProvider"]
            )

    calibrator = Calibrator(floating, ["Conv"], str(floating.with_name("augmented.onnx")))
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(Reader())
    model = onnx.load(floating)
    # The first convolution reads pictures. It has few operations, and loses the most accuracy.
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        # Weights of 7 bits: without VNNI instructions, sums of two products of 8 bits overflow.
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=calibrator.compute_data(),
        nodes_to_quantize=[],
        nodes_to_exclude=[first],
        op_types_to_quantize=["Conv"],
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path))
