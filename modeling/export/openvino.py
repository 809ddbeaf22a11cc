"""Models of OpenVINO (.xml and .bin), made from the same ONNX program."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rednet.export import onnx
from rednet.export.variants import Variant
from rednet.modeling_rednet import RedNetPreTrainedModel
from torch import Tensor


if TYPE_CHECKING:
    import openvino


def write(
    model: RedNetPreTrainedModel, pixel_values: Tensor, output_names: list[str], variant: Variant, path: Path
) -> None:
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # Also for float16, the network is in float32. `save_model` compresses the weights, and the CPU plugin computes in
        # the precision that `compile_model` asks for.
        file = Path(folder, "model.onnx")
        onnx.write_float(model, pixel_values, output_names, Variant(variant.involution), file)
        network = openvino.convert_model(file, extension=_extension() if variant.is_custom else None)
        if variant.dtype == "int8":
            network = _quantized(network, variant)
        openvino.save_model(network, path, compress_to_fp16=variant.dtype == "float16")


def load(path: Path, threads: int | None = None) -> Callable[[Tensor], list[Tensor]]:
    import openvino

    core = openvino.Core()
    if 'type="Involution2d' in path.read_text():
        core.add_extension(_extension())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
    compiled = core.compile_model(path, "CPU", settings)
    return lambda pixel_values: [
        torch.from_numpy(output.copy()) for output in compiled(pixel_values.contiguous().numpy()).values()
    ]


def _extension() -> str:
    from involution.runtimes import openvino_extension

    return openvino_extension()


def _quantized(network: "openvino.Model", variant: Variant) -> "openvino.Model":
    """Quantizes the convolutions of a network by OpenVINO's quantizer."""
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.WARNING)  # otherwise a line for each node that stays in float
    # Weights of 7 bits, because products of 8 bits overflow on x86 processors without VNNI. Ranges that contain every
    # activation: the default, a mean over pictures, lost more accuracy.
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    others = {node.get_type_name() for node in network.get_ops()} - {"Convolution"}
    return nncf.quantize(
        network,
        nncf.Dataset([batch.numpy() for batch in variant.calibration]),
        subset_size=len(variant.calibration),
        ignored_scope=nncf.IgnoredScope(types=sorted(others), validate=False),
        advanced_parameters=advanced,
    )
