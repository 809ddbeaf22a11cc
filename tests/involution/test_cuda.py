"""The CUDA sources: compiled by nvcc if it is installed, and their kernels on the host and, if there is one, on a GPU."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cuda_shim
import involution
from cases import DTYPES, Case, cases, check_fused, check_operators, plain_involution
from interpreter import python
from involution import families, libraries


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, the CUDA compiler")

RESNET_CASE = Case(2, 4, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.float32, "channels_last", "channels_last")
ODD_CASE = Case(1, 2, 3, (9, 14), (2, 5), (2, 3), (4, 0), (3, 1), torch.float64, "slice", "channels_last")


TENSOR_CORES = os.environ.get("INVOLUTION_TENSOR_CORES") == "1"
OPERATORS = ["involution2d", "involution2d_input_grad", "involution2d_kernel_grad", "involution2d_fused"]
FUSED_OPTIONS = {"hidden_channels": st.sampled_from([16, 8, 48, 3]), "affine": st.booleans(), "relu": st.booleans()}


@st.composite
def tiled_cases(draw) -> Case:
    """Cases that the tiled kernels support, with sizes that are and are not multiples of their tiles."""
    k, stride = draw(st.sampled_from([7, 3])), draw(st.sampled_from([1, 2]))
    padding = tuple(draw(st.one_of(st.just(k // 2), st.integers(0, k - 1))) for _ in range(2))
    least = [max(1, k + stride - 2 * p) for p in padding]
    size = tuple(draw(st.one_of(st.just(max(n, 16)), st.integers(n, n + 19))) for n in least)
    return Case(
        batch=draw(st.integers(1, 2)),
        groups=draw(st.integers(1, 3)),
        group_channels=draw(st.sampled_from([16, 8, 32, 24])),
        size=size,
        kernel_size=(k, k),
        stride=(stride, stride),
        padding=padding,
        dilation=(1, 1),
        dtype=draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32])),
        input_layout="channels_last",
        kernel_layout="channels_last",
    )


class Launches:
    """Operators that record which kernel each of them launched."""

    def __init__(self, ops):
        self.ops, self.kernels = ops, {}

    def __getattr__(self, name):
        def run(*arguments):
            result = getattr(self.ops, name)(*arguments)
            self.kernels[name] = self.ops.last_launch().strip("()").split("<")[0]
            return result

        return run


def tiled_kernel(name: str, case: Case, hidden_channels: int) -> str:
    """The kernel that an operator has to launch for one of `tiled_cases`."""
    tensor_cores = TENSOR_CORES and case.dtype != torch.float32
    tensor_cores = tensor_cores and (case.kernel_size[0], case.stride[0], case.group_channels) == (7, 1, 16)
    if name == "involution2d_fused" and hidden_channels % 8 != 0:
        return "fused_kernel"
    if name == "involution2d_fused" and hidden_channels % 16 != 0:
        tensor_cores = False
    kind = {"involution2d": "forward"}.get(name, name.removeprefix("involution2d_"))
    return f"{'tensor_core' if tensor_cores else 'tiled'}_{kind}_kernel"


def check_tiled(ops, case: Case, hidden_channels: int, affine: bool, relu: bool) -> None:
    launches = Launches(ops)
    check_operators(launches, case)
    check_fused(launches, case, hidden_channels, affine, relu)
    assert launches.kernels == {name: tiled_kernel(name, case, hidden_channels) for name in OPERATORS}


def arguments_of(operator: str, case: Case, hidden_channels: int = 16) -> tuple:
    input, kernel, grad = case.tensors()
    taps = case.groups * case.kernel_size[0] * case.kernel_size[1]
    features = torch.randn(case.batch, hidden_channels, *case.output_size, dtype=case.dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(taps, hidden_channels, 1, 1, dtype=case.dtype)
    arguments = {
        "involution2d": (input, kernel),
        "involution2d_input_grad": (grad, kernel, list(case.size)),
        "involution2d_kernel_grad": (grad, input, case.groups, list(case.kernel_size)),
        "involution2d_fused": (input, features, weight, None, None, None, True, list(case.kernel_size)),
    }
    return *arguments[operator], *case.window


def run_with_tensor_cores(selection: str) -> None:
    """Runs tests of this file in a process with tensor cores enabled, because the variable is read once in a process."""
    environment = {**os.environ, "INVOLUTION_TENSOR_CORES": "1"}
    result = python("-m", "pytest", __file__, "-k", selection, "-q", env=environment)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "failed" not in result.stdout


@pytest.fixture(scope="module")
def library(root) -> Path:
    return cuda_shim.load(root)


@pytest.fixture(scope="module")
def cuda_on_cpu(library):
    return getattr(torch.ops, cuda_shim.NAMESPACE)


def test_kernels_match_definition_on_the_host(cuda_on_cpu):
    @given(cases(), FUSED_OPTIONS["hidden_channels"], FUSED_OPTIONS["affine"], FUSED_OPTIONS["relu"])
    @example(RESNET_CASE, 16, True, True)
    @example(ODD_CASE, 5, False, True)
    @settings(max_examples=150)
    def check(case, hidden_channels, affine, relu):
        check_operators(cuda_on_cpu, case)
        check_fused(cuda_on_cpu, case, hidden_channels, affine, relu)

    check()


def test_tiled_kernels_match_definition_on_the_host(cuda_on_cpu):
    @given(tiled_cases(), FUSED_OPTIONS["hidden_channels"], FUSED_OPTIONS["affine"], FUSED_OPTIONS["relu"])
    @settings(max_examples=100)
    def check(case, hidden_channels, affine, relu):
        check_tiled(cuda_on_cpu, case, hidden_channels, affine, relu)

    check()


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 14), (16, 8), (17, 25)])
@pytest.mark.parametrize("group_channels", [16, 8, 32], ids="channels{}".format)
@pytest.mark.parametrize("stride", [1, 2], ids="stride{}".format)
@pytest.mark.parametrize("k", [7, 3], ids="K{}".format)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_tiled_kernel_on_the_host(cuda_on_cpu, dtype, k, stride, group_channels, size):
    layout, padding = "channels_last", (k // 2, k // 2)
    case = Case(2, 2, group_channels, size, (k, k), (stride, stride), padding, (1, 1), dtype, layout, layout)
    check_tiled(cuda_on_cpu, case, hidden_channels=16, affine=True, relu=False)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (17, 11)])
def test_no_vector_extends_beyond_the_kernel_tensor_on_the_host(cuda_on_cpu, size):
    """Its last kernel ends within a vector, of which the rest may not be allocated."""
    kernel = torch.randn(1, 3 * 49, *size).bfloat16().contiguous(memory_format=torch.channels_last)
    assert kernel.numel() * 2 % 16 != 0
    kernel = kernel.unflatten(1, (3, 7, 7))
    assert cuda_on_cpu.reads_after_end(kernel) == cuda_on_cpu.reads_after_end(kernel[:, 1:]) == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_hidden_channels_on_the_host(cuda_on_cpu, library, dtype, layout):
    """A separate convolution generates their kernels unless tensor cores compute the operator or it is forbidden."""
    operator, form = "involution2d_fused", "convolution + involution"
    case = Case(2, 2, 16, (9, 8), (7, 7), (1, 1), (3, 3), (1, 1), dtype, layout, layout)
    tensor_cores = TENSOR_CORES and layout == "channels_last" and dtype in (torch.bfloat16, torch.float16)
    for affine, relu in ((True, True), (False, True), (True, False)):
        check_fused(cuda_on_cpu, case, 64, affine, relu)
        assert families.last(library) == ("tensor_cores" if tensor_cores else form)
    families.allow(library, operator, form, False)
    try:
        check_fused(cuda_on_cpu, case, 64, True, True)
        last = families.last(library)
    finally:
        families.allow(library, operator, form)
    tiled = layout == "channels_last" and dtype != torch.float64
    assert last == ("tensor_cores" if tensor_cores else "tiled" if tiled else "general")


@pytest.mark.parametrize(
    "changes, hidden_channels",
    [
        ({}, 72),
        ({"stride": (2, 2)}, 64),
        ({"stride": (1, 2)}, 64),
        ({"dilation": (2, 2)}, 64),
        ({"dilation": (1, 2)}, 64),
        ({"kernel_size": (7, 5)}, 64),
        ({"group_channels": 8}, 64),
        ({"input_layout": "slice"}, 64),
        ({"kernel_layout": "contiguous"}, 64),
    ],
    ids=str,
)
def test_many_hidden_channels_that_no_tensor_core_supports_on_the_host(cuda_on_cpu, library, changes, hidden_channels):
    case = Case(1, 2, 16, (9, 8), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, "channels_last", "channels_last")
    check_fused(cuda_on_cpu, replace(case, **changes), hidden_channels, True, True)
    assert families.last(library) == "convolution + involution"


def test_tensor_cores_match_definition_on_the_host(cuda_on_cpu):
    # Of every tiled kernel, those that tensor cores replace: 16 bits, K = 7, stride 1, 16 channels in a group.
    replaced = "every_tiled_kernel and K7 and stride1 and channels16 and not float32"
    run_with_tensor_cores(f"({replaced} or tiled_ and not every or forbidden or many_hidden) and on_the_host")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_batch_on_the_host(cuda_on_cpu, layout):
    case = Case(0, 2, 16, (14, 14), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, layout, layout)
    input, kernel, grad = case.tensors()
    features, weight = torch.empty(0, 16, 14, 14, dtype=case.dtype), torch.randn(2 * 49, 16, 1, 1, dtype=case.dtype)
    ops, window = cuda_on_cpu, case.window
    assert ops.involution2d(input, kernel, *window).shape == input.shape
    assert ops.involution2d_input_grad(grad, kernel, [14, 14], *window).shape == input.shape
    assert ops.involution2d_kernel_grad(grad, input, 2, [7, 7], *window).shape == kernel.shape
    fused = ops.involution2d_fused(input, features, weight, None, None, None, True, [7, 7], *window)
    assert fused.shape == input.shape


def test_tiled_kernels_support_aligned_slices_on_the_host(cuda_on_cpu):
    """Channels of a larger channels-last image: read by vectors if they begin at a multiple of 16 bytes."""
    ops, window = cuda_on_cpu, ([1, 1], [3, 3], [1, 1])
    larger = torch.randn(2, 48, 9, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(2, 3 * 49, 9, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    kernel = kernels.unflatten(1, (3, 7, 7))[:, 1:]
    for first, tiled in ((8, True), (16, True), (1, False), (4, False)):
        input = larger[:, first : first + 32]
        expected = plain_involution(input.double(), kernel.double(), *window)
        output = ops.involution2d(input, kernel, *window)
        torch.testing.assert_close(output.double(), expected, atol=0.2, rtol=1e-2)
        assert ("tiled" in ops.last_launch() or "tensor_core" in ops.last_launch()) == tiled
    grad = torch.ones(2, 32, 1, 1).bfloat16().expand(2, 32, 9, 10)
    ops.involution2d_input_grad(grad, kernel, [9, 10], *window)
    assert "(input_grad_kernel" in ops.last_launch()


def test_tiled_kernels_multiply_the_padding_on_the_host(cuda_on_cpu):
    """Padding is a zero that is multiplied: an infinite tap over it gives NaN, as in the definition."""
    case = Case(1, 2, 16, (14, 13), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, "channels_last", "channels_last")
    input, kernel, _ = case.tensors()
    kernel[0, 0, 2, 1] = torch.inf
    expected = plain_involution(input.double(), kernel.double(), *case.window)
    output = cuda_on_cpu.involution2d(input, kernel, *case.window)
    assert torch.equal(output.isnan(), expected.isnan()) and torch.equal(output.isinf(), expected.isinf())
    assert expected.isnan().any() and expected.isinf().any()


@pytest.mark.parametrize("operator", OPERATORS)
def test_forbidden_families_are_replaced_on_the_host(cuda_on_cpu, library, operator):
    """By the next one. The kernel that ran is that of the family that the library reports."""
    case = Case(1, 2, 16, (9, 8), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, "channels_last", "channels_last")
    kernels = {"general": "", "tiled": "tiled_", "tensor_cores": "tensor_core_"}
    name = {"involution2d": "forward", "involution2d_fused": "fused"}.get(
        operator, operator.removeprefix("involution2d_")
    )
    order = ["tensor_cores"] * TENSOR_CORES + ["tiled", "general"]
    try:
        for family in order:
            launches = Launches(cuda_on_cpu)
            check_operators(launches, case)
            check_fused(launches, case, 16, True, True)
            assert launches.kernels[operator] == f"{kernels[family]}{name}_kernel"
            getattr(cuda_on_cpu, operator)(*arguments_of(operator, case))
            assert families.last(library) == family
            if family != "general":
                families.allow(library, operator, family, False)
    finally:
        for family in families.of(operator)[1:]:
            families.allow(library, operator, family)


def test_the_last_family_cannot_be_forbidden(library):
    for operator, family in (("involution2d", "general"), ("involution2d", "convolution + involution")):
        with pytest.raises(ValueError, match="expected one of"):
            families.allow(library, operator, family, False)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_tiled_kernels_propagate_non_finite_values_on_the_host(cuda_on_cpu, value):
    """As in the definition; with tensor cores, also to the other pixels of a product, in the same channel."""
    case = Case(1, 2, 16, (20, 30), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, "channels_last", "channels_last")
    input, kernel, grad = case.tensors()
    input[0, 5, 9, 12] = grad[0, 5, 9, 12] = value
    window = case.window
    affected = torch.zeros(input.shape, dtype=torch.bool)
    affected[0, 5, 6:13, 9:16] = True
    reach = affected.clone()
    if TENSOR_CORES:
        reach[0, 5, 6:13, 2:23] = True
    output = cuda_on_cpu.involution2d(input, kernel, *window)
    grad_input = cuda_on_cpu.involution2d_input_grad(grad, kernel, [20, 30], *window)
    for result in (output, grad_input):
        assert not result[affected].isfinite().any() and result[~reach].isfinite().all()
    grad_kernel = cuda_on_cpu.involution2d_kernel_grad(torch.ones_like(input), input, 2, [7, 7], *window)
    expected = torch.zeros(grad_kernel.shape, dtype=torch.bool)
    for u in range(7):
        for v in range(7):
            expected[0, 0, u, v, 12 - u, 15 - v] = True
    assert torch.equal(~grad_kernel.isfinite(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tiled_and_general_fused_keep_nan_on_the_host(cuda_on_cpu, dtype):
    input = torch.randn(1, 16, 14, 14).to(dtype).contiguous(memory_format=torch.channels_last)
    input[0, 3, 7, 7] = torch.nan
    features = torch.randn(1, 16, 14, 14).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(49, 16, 1, 1).to(dtype)
    output = cuda_on_cpu.involution2d_fused(
        input, features, weight, None, None, None, True, [7, 7], [1, 1], [3, 3], [1, 1]
    )
    assert output[0, 3, 4:11, 4:11].isnan().all() and output[0, 4:].isfinite().all()


@pytest.mark.parametrize("of_block", [True, False])
def test_shim_reports_a_barrier_that_threads_miss(library, of_block):
    script = f"import torch; torch.ops.load_library({str(library)!r}); "
    script += f"torch.ops.involution_cuda_on_cpu.run_broken_barrier({of_block})"
    result = python("-c", script)
    assert result.returncode != 0 and "a barrier was not reached by all threads" in result.stderr


def test_kernels_index_beyond_32_bits_on_the_host(cuda_on_cpu):
    """Three rows of pixels that are 2**32 bytes apart, in memory that is reserved but not used between them."""
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
    features, weight = torch.randn(1, 4, 3, 2), torch.randn(9, 4, 1, 1)
    output = cuda_on_cpu.involution2d_fused(input, features, weight, None, None, None, False, [3, 3], *window)
    generated = F.conv2d(features, weight).unflatten(1, (1, 3, 3))
    torch.testing.assert_close(output, plain_involution(values, generated, *window))


def test_threads_that_compute_nothing_do_not_overflow_on_the_host(cuda_on_cpu):
    """Those after the last row and the last channel, where two rows and two channels are 2**30 elements apart."""
    features = torch.empty(2**30 + 16).as_strided((1, 2, 2, 1), (1, 1, 2**30, 1))
    input = torch.empty(2**30 + 16).as_strided((1, 2, 2, 1), (1, 2**30, 1, 1))
    weight, values = torch.randn(9, 2, 1, 1), torch.randn(2, 1, 2, 2, 1)
    input.copy_(values[0]), features.copy_(values[1])
    window = ([1, 1], [1, 1], [1, 1])
    output = cuda_on_cpu.involution2d_fused(input, features, weight, None, None, None, False, [3, 3], *window)
    generated = F.conv2d(values[1], weight).unflatten(1, (1, 3, 3))
    torch.testing.assert_close(output, plain_involution(values[0], generated, *window))


@needs_nvcc
@pytest.mark.parametrize(
    "architectures", ["8.0", pytest.param("8.0;9.0", marks=pytest.mark.slow(reason="compiles the same code twice"))]
)
def test_builds_with_nvcc(architectures):
    """The library is compiled and linked, and registers all four operators when it is loaded, without a GPU as well."""
    script = """
import torch, involution
from involution import extension, families, libraries
library = extension.build("cuda")
torch.ops.load_library(library)
for op in ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad", "involution2d_fused"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"involution::{op}", "CUDA"), op
families.use_only(library, "involution2d", "general")
assert families.last(library) == "" and families._functions(library).involution_has_tensor_cores
print(libraries.find("cuda"))
"""
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": architectures}
    # Without optimization, nvcc takes half as long. Another folder, because no other test may load such a library.
    environment["NVCC_APPEND_FLAGS"] = "-Xcicc -O0 -Xptxas -O0 -Xcompiler -O0"
    environment["TORCH_EXTENSIONS_DIR"] = str(libraries.cache_directory() / "without_optimization")
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stderr
    library = result.stdout.strip()
    names = [f"sm_{version.replace('.', '')}" for version in architectures.split(";")]
    assert library.endswith(f"{''.join(names).replace('sm_', '_sm')}.so")
    code = Path(library).read_bytes()
    assert all(name.encode() in code for name in names)


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
@given(cases(), FUSED_OPTIONS["hidden_channels"], FUSED_OPTIONS["affine"], FUSED_OPTIONS["relu"])
@example(RESNET_CASE, 16, True, True)
@example(ODD_CASE, 5, False, True)
@settings(max_examples=150)
def test_fused_matches_definition_on_gpu(case, hidden_channels, affine, relu):
    check_fused(torch.ops.involution, case, hidden_channels, affine, relu, "cuda")


@needs_gpu
@given(tiled_cases(), FUSED_OPTIONS["hidden_channels"], FUSED_OPTIONS["affine"], FUSED_OPTIONS["relu"])
@settings(max_examples=250)
def test_tiled_kernels_match_definition_on_gpu(case, hidden_channels, affine, relu):
    check_operators(torch.ops.involution, case, "cuda")
    check_fused(torch.ops.involution, case, hidden_channels, affine, relu, "cuda")


@needs_gpu
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs mma.m16n8k16, sm_80"
)
def test_tensor_cores_match_definition_on_gpu():
    run_with_tensor_cores("tiled_kernels_match_definition_on_gpu or test_is_deterministic_on_gpu")


@needs_gpu
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_is_deterministic_on_gpu(dtype, stride):
    layout = "channels_last"
    case = Case(4, 8, 16, (56, 56), (7, 7), (stride, stride), (3, 3), (1, 1), dtype, layout, layout)
    input, kernel, grad = case.tensors("cuda")
    features = torch.randn(4, 32, *case.output_size, device="cuda", dtype=dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8 * 49, 32, 1, 1, device="cuda", dtype=dtype)
    ops, window = torch.ops.involution, case.window

    def results():
        return (
            ops.involution2d(input, kernel, *window),
            ops.involution2d_input_grad(grad, kernel, [56, 56], *window),
            ops.involution2d_kernel_grad(grad, input, 8, [7, 7], *window),
            ops.involution2d_fused(input, features, weight, None, None, None, True, [7, 7], *window),
        )

    assert all(torch.equal(first, second) for first, second in zip(results(), results()))


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
    features = torch.randn(2, 8, *case.output_size, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(2 * 9, 8, 1, 1, device="cuda", dtype=dtype, requires_grad=True)
    bias = torch.randn(2 * 9, device="cuda", dtype=dtype, requires_grad=True)
    scale, shift = torch.randn(2, 32, device="cuda", dtype=torch.promote_types(dtype, torch.float32))
    fused = (input, features, weight, bias, scale, shift, True, [3, 3], *window)
    torch.library.opcheck(ops.involution2d_fused, fused)


@needs_gpu
def test_gradients_on_gpu():
    case = Case(2, 2, 2, (6, 5), (3, 3), (2, 1), (1, 1), (1, 2), torch.float64, "channels_last", "channels_last")
    input, kernel, _ = (t.requires_grad_() for t in case.tensors("cuda"))

    def f(a, b):
        return involution.involution2d(a, b, (2, 1), (1, 1), (1, 2))

    assert torch.autograd.gradcheck(f, (input, kernel)) and torch.autograd.gradgradcheck(f, (input, kernel))


@needs_gpu
def test_runs_on_the_current_stream():
    """The input comes from a long computation on a side stream: the result is right only if the kernel runs there too."""
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
