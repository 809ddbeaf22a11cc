"""ONNX models of the domain `rednet` in OpenVINO."""

import onnx
import openvino
import torch
from onnx import TensorProto, helper
from torch import Tensor

from involution import runtimes
from onnx_nodes import node_model


def core() -> openvino.Core:
    core = openvino.Core()
    core.add_extension(runtimes.openvino_extension())
    return core


def with_shapes(model: bytes, shapes: dict[str, list]) -> bytes:
    """The same ONNX model with shapes of its inputs. None is an unknown size."""
    proto = onnx.load_model_from_string(model)
    inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape) for name, shape in shapes.items()]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return proto.SerializeToString()


def shapes_of(shapes: dict, known: bool) -> dict[str, list]:
    """The shapes, or only their ranks, which the plugin needs."""
    return {name: [size if known else None for size in shape] for name, shape in shapes.items()}


def compiled(model, threads: int = 1) -> openvino.CompiledModel:
    """For the contents of an ONNX file, the path of a file, or a model."""
    core_ = core()
    model = model if isinstance(model, openvino.Model) else core_.read_model(model)
    return core_.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})


def run(model: openvino.CompiledModel, **tensors: Tensor | None) -> Tensor:
    """The output in float64. Tensors that are None are left out."""
    feed = {name: tensor.double().contiguous().numpy() for name, tensor in tensors.items() if tensor is not None}
    return torch.from_numpy(model.create_infer_request().infer(feed)[0].copy())


class CpuPlugin:
    """The operators with the signatures of `torch.ops.involution`, run by the plugin, which converts to float32.

    `known`: whether shapes are known when the ONNX model is converted, which determines the layout of images.
    """

    def __init__(self, known: bool, threads: int = 1):
        self.known, self.threads = known, threads

    def involution2d(self, input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
        attributes = {"stride": stride, "padding": padding, "dilation": dilation}
        return self._result("Involution2d", {"input": input, "kernel": kernel}, input.dtype, attributes)

    def involution2d_fused(
        self, input: Tensor, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation
    ) -> Tensor:
        tensors = {"input": input, "features": features, "weight": weight}
        tensors |= {"bias": bias, "scale": scale, "shift": shift}
        window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        return self._result("Involution2dFused", tensors, input.dtype, {**window, "relu": int(relu)})

    def _result(self, operator: str, tensors: dict, dtype: torch.dtype, attributes: dict) -> Tensor:
        names = ["" if tensor is None else name for name, tensor in tensors.items()]
        while not names[-1]:  # a missing input at the end may also be left out
            names.pop()
        model = node_model(operator, names, dtype, **attributes)
        model = with_shapes(model, shapes_of({name: tensors[name].shape for name in names if name}, self.known))
        return self._run(model, tensors).to(dtype)

    def _run(self, model: bytes, tensors: dict) -> Tensor:
        return run(compiled(model, self.threads), **tensors)


class Evaluation(CpuPlugin):
    """The same without a plugin: the operators compute in the dtype of their inputs."""

    def _run(self, model: bytes, tensors: dict) -> Tensor:
        graph = core().read_model(model)
        inputs = [
            openvino.Tensor(tensors[parameter.friendly_name].double().contiguous().numpy())
            for parameter in graph.get_parameters()
        ]
        outputs = [openvino.Tensor(openvino.Type.f64, openvino.Shape([0]))]
        assert graph.evaluate(outputs, inputs)
        return torch.from_numpy(outputs[0].data.copy())
