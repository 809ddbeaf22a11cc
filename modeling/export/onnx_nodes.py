"""The operator as one node of an ONNX graph, of the domain `rednet`.

`involution.runtimes` has the libraries that give onnxruntime and OpenVINO these nodes.
"""

from collections.abc import Callable

import torch


DOMAIN, VERSION = "rednet", 1
_DTYPES = ["tensor(float)", "tensor(float16)", "tensor(double)"]
_SCALES = ["tensor(float)", "tensor(double)"]  # of scale and shift, which are never in float16


def translation_table() -> dict[Callable, Callable]:
    """
    Returns the `custom_translation_table` with which `torch.onnx.export(..., dynamo=True)` writes the operator as one
    node, `Involution2d` or `Involution2dFused`, for any network that has it.

    Raises:
        ModuleNotFoundError: `onnxscript` is not installed.
    """
    from onnxscript.values import Op, Opset

    import involution  # noqa: F401  registers the operators

    opset = Opset(DOMAIN, VERSION)
    single, fused = (Op(opset, schema.name, schema) for schema in _schemas())

    def involution2d(input, kernel, stride, padding, dilation):
        return single(input, kernel, stride=stride, padding=padding, dilation=dilation)

    def involution2d_fused(input, features, weight, bias, scale, shift, relu, kernel_size, stride, padding, dilation):
        return fused(
            input,
            features,
            weight,
            bias,
            scale,
            shift,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            relu=int(relu),
        )

    ops = torch.ops.involution
    return {ops.involution2d.default: involution2d, ops.involution2d_fused.default: involution2d_fused}


def _schemas():
    from onnx.defs import OpSchema

    def tensors(names: str, type: str = "T", option=OpSchema.FormalParameterOption.Single):
        return [OpSchema.FormalParameter(name, type, param_option=option) for name in names.split()]

    def pairs(names: str):
        return [OpSchema.Attribute(name, OpSchema.AttrType.INTS, "rows, columns") for name in names.split()]

    optional = OpSchema.FormalParameterOption.Optional
    dtypes, scales = ("T", _DTYPES, "of the tensors"), ("S", _SCALES, "of scale and shift")
    return (
        OpSchema(
            "Involution2d",
            DOMAIN,
            VERSION,
            inputs=tensors("input kernel"),
            outputs=tensors("output"),
            type_constraints=[dtypes],
            attributes=pairs("stride padding dilation"),
        ),
        OpSchema(
            "Involution2dFused",
            DOMAIN,
            VERSION,
            inputs=tensors("input features weight")
            + tensors("bias", option=optional)
            + tensors("scale shift", "S", optional),
            outputs=tensors("output"),
            type_constraints=[dtypes, scales],
            attributes=pairs("kernel_size stride padding dilation")
            + [OpSchema.Attribute("relu", OpSchema.AttrType.INT, "0 or 1")],
        ),
    )
