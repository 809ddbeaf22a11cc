"""ONNX models of one operator of the domain `rednet`, and their sessions in onnxruntime."""

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from involution import runtimes


ONNX_DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}


def node_model(operator: str, inputs: list[str], dtype: torch.dtype = torch.float32, **attributes) -> bytes:
    """A model of one node that computes in `dtype`.

    Its inputs and its output are in float64, which holds the values of every dtype, because NumPy has no bfloat16.

    Args:
        inputs: names of the inputs. A missing one is "".
        attributes: ints or lists of ints.
    """
    accumulation = torch.promote_types(dtype, torch.float32)
    converted = [name and f"{name}_converted" for name in inputs]
    nodes = [
        helper.make_node("Cast", [name], [to], to=ONNX_DTYPES[accumulation if name in ("scale", "shift") else dtype])
        for name, to in zip(inputs, converted)
        if name
    ]
    node = helper.make_node(operator, converted, ["result"], name="node", domain="rednet")
    for name, value in attributes.items():
        kind = onnx.AttributeProto.INT if isinstance(value, int) else onnx.AttributeProto.INTS
        node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
    nodes += [node, helper.make_node("Cast", ["result"], ["output"], to=TensorProto.DOUBLE)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in [*filter(None, inputs), "output"]
    ]
    return save_graph(helper.make_graph(nodes, "graph", values[:-1], values[-1:]))


def save_graph(graph: onnx.GraphProto) -> bytes:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("rednet", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # tests provoke errors
    options.register_custom_ops_library(runtimes.onnxruntime_library())
    return options


def session(model, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session for the contents or the path of a model."""
    return onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, **tensors: Tensor | None) -> Tensor:
    """The output in float64. Tensors that are None are left out."""
    feed = {name: tensor.double().contiguous().numpy() for name, tensor in tensors.items() if tensor is not None}
    return torch.from_numpy(session.run(None, feed)[0])


class OnnxRuntime:
    """The operators with the signatures of `torch.ops.involution`."""

    def __init__(self, threads: int = 1):
        self.threads = threads

    def involution2d(self, input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
        attributes = {"stride": stride, "padding": padding, "dilation": dilation}
        model = node_model("Involution2d", ["input", "kernel"], input.dtype, **attributes)
        return run(session(model, self.threads), input=input, kernel=kernel).to(input.dtype)

    def involution2d_fused(
        self, input: Tensor, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation
    ) -> Tensor:
        tensors = {
            "input": input,
            "features": features,
            "weight": weight,
            "bias": bias,
            "scale": scale,
            "shift": shift,
        }
        names = ["" if tensor is None else name for name, tensor in tensors.items()]
        while not names[-1]:  # a missing input at the end may also be left out
            names.pop()
        window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        model = node_model("Involution2dFused", names, input.dtype, **window, relu=int(relu))
        return run(session(model, self.threads), **tensors).to(input.dtype)
