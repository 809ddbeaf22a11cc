"""The CUDA source: built by nvcc where that is, its kernels run on the host everywhere, and on a GPU where one is."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from cases import DTYPES, Case, cases, check_operators
from hypothesis import example, given, settings
from torch.utils import cpp_extension

import involution


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, the CUDA compiler")

RESNET_CASE = Case(2, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")
ODD_CASE = Case(1, 2, 3, (9, 14), (2, 5), (2, 3), (4, 0), (3, 1), torch.float64, "slice", "channels_last")


@pytest.fixture(scope="module")
def cuda_on_cpu(root):
    cpp_extension.load(
        "involution_cuda_on_cpu",
        [str(root / "tests/involution/cuda_on_cpu.cpp")],
        extra_cflags=["-O1"],
        extra_include_paths=[str(root / "src/involution/csrc")],
        is_python_module=False,
    )
    return torch.ops.involution_cuda_on_cpu


def test_kernels_match_definition_on_the_host(cuda_on_cpu):
    @given(cases())
    @example(RESNET_CASE)
    @example(ODD_CASE)
    @settings(max_examples=150)
    def check(case):
        check_operators(cuda_on_cpu, case)

    check()


def test_kernels_index_beyond_32_bits_on_the_host(cuda_on_cpu):
    """Three pixels whose rows lie 2**32 bytes apart in memory that is reserved but never touched between them."""
    rows = torch.empty(3 * 2**30 + 16, dtype=torch.float32)
    input = rows.as_strided((1, 1, 3, 2), (1, 1, 2**30, 1))
    values = torch.randn(1, 1, 3, 2)
    input.copy_(values)
    kernel = torch.randn(1, 1, 3, 3, 3, 2)
    window = ([1, 1], [1, 1], [1, 1])
    for ops in (cuda_on_cpu, torch.ops.involution):
        torch.testing.assert_close(
            ops.involution2d(input, kernel, *window), torch.ops.involution.involution2d(values, kernel, *window)
        )


@needs_nvcc
def test_builds_for_sm_80_and_sm_90(tmp_path):
    """Really compiled and linked; the library loads and registers all three operators, GPU or not."""
    script = """
import torch, involution
from involution import extension
torch.ops.load_library(extension.build("cuda"))
for op in ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"involution::{op}", "CUDA"), op
print(extension._find("cuda"))
"""
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": "8.0;9.0"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    library = result.stdout.strip()
    assert library.endswith("_sm80_sm90.so")
    with open(library, "rb") as file:
        code = file.read()
    assert b"sm_80" in code and b"sm_90" in code


@needs_gpu
def test_compiled_for_this_gpu():
    assert involution.extension.load("cuda"), involution.show_config()


@needs_gpu
@given(cases())
@example(RESNET_CASE)
@example(ODD_CASE)
@settings(max_examples=250)
def test_matches_definition_on_gpu(case):
    check_operators(torch.ops.involution, case, "cuda")


@needs_gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_gpu(dtype, layout):
    case = Case(2, 2, 16, (6, 7), (3, 3), (2, 1), (1, 1), (1, 1), dtype, layout, layout)
    input, kernel, grad = (t.detach().requires_grad_() for t in case.tensors("cuda"))
    ops, window = torch.ops.involution, case.window
    torch.library.opcheck(ops.involution2d, (input, kernel, *window))
    torch.library.opcheck(ops.involution2d_input_grad, (grad, kernel, [6, 7], *window))
    torch.library.opcheck(ops.involution2d_kernel_grad, (grad, input, 2, [3, 3], *window))


@needs_gpu
def test_gradients_on_gpu():
    case = Case(2, 2, 2, (6, 5), (3, 3), (2, 1), (1, 1), (1, 2), torch.float64, "channels_last", "channels_last")
    input, kernel, _ = (t.requires_grad_() for t in case.tensors("cuda"))

    def f(a, b):
        return involution.involution2d(a, b, (2, 1), (1, 1), (1, 2))

    assert torch.autograd.gradcheck(f, (input, kernel)) and torch.autograd.gradgradcheck(f, (input, kernel))


@needs_gpu
def test_runs_on_the_current_stream():
    """A result that waits for a long computation on a side stream is right only if the kernel is queued there."""
    input, kernel, _ = RESNET_CASE.tensors("cuda")
    expected = involution.involution2d(input, kernel)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(input)
        torch.cuda._sleep(200_000_000)
        late.copy_(input)
        output = involution.involution2d(late, kernel)
    stream.synchronize()
    torch.testing.assert_close(output, expected)


@needs_gpu
def test_captured_in_a_cuda_graph():
    input, kernel, _ = RESNET_CASE.tensors("cuda")
    involution.involution2d(input, kernel)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = involution.involution2d(input, kernel)
    input.copy_(torch.randn_like(input))
    graph.replay()
    torch.testing.assert_close(output, involution.involution2d(input, kernel))


@needs_gpu
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_gpu(autocast_dtype):
    input, kernel, _ = RESNET_CASE.tensors("cuda")
    with torch.autocast("cuda", dtype=autocast_dtype):
        output = involution.involution2d(input, kernel.to(autocast_dtype))
    assert output.dtype == autocast_dtype
    exact = involution.involution2d(input.double(), kernel.to(autocast_dtype).double())
    assert (output.double() - exact).abs().max() / exact.abs().max() < 1e-2


@needs_gpu
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[1] < 24e9, reason="needs 24 GB of GPU memory"
)
def test_more_than_2_31_elements_on_gpu():
    input = torch.randn(1, 16, 11600, 11600, device="cuda", dtype=torch.float16)  # 2.15e9 elements
    kernel = torch.randn(1, 1, 1, 1, 11600, 11600, device="cuda", dtype=torch.float16)
    output = involution.involution2d(input, kernel)
    for rows in (slice(0, 2), slice(-2, None)):
        torch.testing.assert_close(output[:, :, rows], input[:, :, rows] * kernel[:, 0, 0, :, rows])


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_input():
    input, kernel, _ = RESNET_CASE.tensors("cuda:1")
    torch.testing.assert_close(
        involution.involution2d(input, kernel).cpu(), involution.involution2d(input.cpu(), kernel.cpu())
    )
