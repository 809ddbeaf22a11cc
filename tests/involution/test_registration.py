"""The schemas have one source, csrc/schemas.h, and whoever comes first defines the operators: Python or a library."""

import itertools
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from interpreter import python
from involution import extension, involution2d, involution2d_fused


START = """
import sys, warnings, torch
warnings.simplefilter("error", RuntimeWarning)
"""
USE = """
import involution
from cases import Case, check_operators
case = Case(1, 2, 5, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1), torch.float32, "contiguous", "contiguous")
check_operators(torch.ops.involution, case)
input, kernel = torch.randn(1, 4, 5, 6).double().requires_grad_(), torch.randn(1, 2, 3, 3, 5, 6).double().requires_grad_()
assert torch.autograd.gradcheck(involution.involution2d, (input, kernel))
window = [1, 1], [1, 1], [1, 1]
torch.library.opcheck(torch.ops.involution.involution2d, (input, kernel, *window))
with torch.autocast("cpu"):
    assert involution.involution2d(input.float(), kernel.float()).dtype == torch.bfloat16
"""


def run(root, code: str, *arguments) -> None:
    code = START + code + USE
    result = python("-c", code, *arguments, env={**os.environ, "PYTHONPATH": str(root / "tests/support")})
    assert result.returncode == 0 and not result.stderr, result.stdout + result.stderr


def test_operators_cast_on_every_device_that_has_autocast():
    devices = ("cpu", "cuda", "mps", "xpu", "hpu", "ipu", "xla", "mtia", "maia", "meta", "privateuseone", "vulkan")
    available = [device for device in devices if torch.amp.is_autocast_available(device)]
    assert {"cpu", "cuda", "mps", "xpu"} <= set(available)
    for device, operator in itertools.product(available, ("involution2d", "involution2d_fused")):
        key = "AutocastPrivateUse1" if device == "privateuseone" else f"Autocast{device.upper()}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"involution::{operator}", key), key


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_the_kernel_of_a_convolution_under_autocast_on_other_devices(device):
    """Fake tensors have a device, a dtype and a shape. Without that device, they have neither gradients nor BatchNorm."""
    with FakeTensorMode(), torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        sizes = (2, 16, 6, 5), (4, 16, 1, 1), (9, 4, 1, 1)
        input, reduce, span = (torch.empty(size, device=device) for size in sizes)
        features = F.conv2d(input, reduce)
        assert (input.dtype, features.dtype) == (torch.float32, torch.bfloat16)
        kernel = F.conv2d(features, span).unflatten(1, (1, 3, 3))
        for output in (involution2d(input, kernel), involution2d_fused(input, features, span, kernel_size=3)):
            assert output.dtype == torch.bfloat16 and output.device.type == device


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_library_that_is_loaded_before_the_import(root):
    code = """
torch.ops.load_library(sys.argv[1])
assert not hasattr(torch.ops.involution, "involution2d")  # Python defines it
"""
    run(root, code, extension.build("cpu"))


def test_operators_that_a_library_defined_before_the_import(root):
    """As in a C++ program that loads a library and starts Python later: through the same C functions."""
    code = """
import ast, ctypes
from pathlib import Path
text = Path(sys.argv[1]).read_text()
schemas = ast.literal_eval("[" + text.split("kSchemas[] = {")[1].split("};")[0] + "]")
assert len(schemas) == 5
torch_cpu = ctypes.CDLL("libtorch_cpu.so")
library = ctypes.c_void_p()
assert torch_cpu.aoti_torch_library_init_fragment(b"involution", b"file", 1, ctypes.byref(library)) == 0
for schema in schemas:
    assert torch_cpu.aoti_torch_library_def(library, schema.encode()) == 0
assert hasattr(torch.ops.involution, "involution2d")
"""
    run(root, code, root / "src/involution/csrc/schemas.h")
