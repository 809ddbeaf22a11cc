"""The schemas have one source, csrc/schemas.h, and whoever comes first defines the operators: Python or a library."""

import os
import shutil

import pytest

from interpreter import python
from involution import extension


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
assert len(schemas) == 4
torch_cpu = ctypes.CDLL("libtorch_cpu.so")
library = ctypes.c_void_p()
assert torch_cpu.aoti_torch_library_init_fragment(b"involution", b"file", 1, ctypes.byref(library)) == 0
for schema in schemas:
    assert torch_cpu.aoti_torch_library_def(library, schema.encode()) == 0
assert hasattr(torch.ops.involution, "involution2d")
"""
    run(root, code, root / "src/involution/csrc/schemas.h")
