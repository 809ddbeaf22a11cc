"""The self-check of the CUDA kernels, on the host. Defects are planted into them (cuda_shim.h)."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import cuda_shim
from interpreter import python
from involution import extension, families, self_check, verification


# Loads the library as `extension.load("cuda")` does on a machine whose GPU is the host. Prints what it returns.
LOAD = """
import logging, sys
from functools import partial
from pathlib import Path
import torch
from involution import extension, families, verification

logging.basicConfig(format="%(message)s")
library = Path(sys.argv[1])
extension.find_or_build = lambda device_type: library
# It registers its operators elsewhere.
extension._has_kernels = lambda device_type: str(library) in torch.ops.loaded_libraries
verification.records = partial(verification.records, devices=["cpu"], namespace="involution_cuda_on_cpu")
verification.TIMEOUT = 10
print(extension.load("cuda"), extension.load("cuda"))
print(extension.show_config())
"""
# With the kernels that are left, forward and backward agree with the definition.
USE = """
from cases import Case, check_fused, check_operators
ops = torch.ops.involution_cuda_on_cpu
case = Case(2, 2, 16, (9, 11), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, "channels_last", "channels_last")
check_operators(ops, case)
print("kernel_grad by", families.last(library))
ops.involution2d(*case.tensors()[:2], *case.window)
print("forward by", families.last(library))
check_fused(ops, case, 16, True, True)
print("fused by", families.last(library))
"""


def run(library: Path, code: str = LOAD, **environment: str) -> tuple[str, str]:
    """Output and errors of a process."""
    support = os.path.join(os.path.dirname(__file__), "..", "support")
    result = python("-c", code, library, env={**os.environ, "PYTHONPATH": support, **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def shim(root) -> Path:
    return cuda_shim.load(root)


@pytest.fixture
def library(shim, tmp_path) -> Path:
    """In a folder of its own, because the records are next to it."""
    return Path(shutil.copy(shim, tmp_path))


@pytest.mark.parametrize(
    "operator, family, words",
    [
        ("involution4d", "tiled", "operator is 'involution4d', expected one of"),
        ("involution2d", "general", "family is 'general', expected one of .* for involution2d"),
        ("involution2d", families.CONVOLUTION, "family is 'convolution [+] involution', expected one of"),
    ],
)
def test_unknown_families_raise(operator, family, words):
    with pytest.raises(ValueError, match=words):
        families.allow(Path("absent.so"), operator, family)


def test_kernels_agree_and_two_processes_check_once(library, monkeypatch):
    with ThreadPoolExecutor() as threads:
        outcomes = list(threads.map(run, [library] * 2))
    assert sum("Checking the CUDA kernels" in errors for _, errors in outcomes) == 1
    for output, errors in outcomes:
        assert output.startswith("True True\n") and "RuntimeWarning" not in errors
        assert "as defined: general, tiled, tensor_cores, convolution + involution" in output
        assert "refused" not in output

    path = verification.record_path(library, "cpu")
    record = json.loads(path.read_text())
    assert verification.existing(library, "cpu") == record
    assert sorted(path.name for path in library.parent.iterdir()) == ["check.lock", path.name, library.name]
    families_of = {(result["operator"], result["family"]) for result in record["results"]}
    assert families_of == {(operator, family) for operator in families.OPERATORS for family in families.of(operator)}
    dtypes = {"general": 4, "tiled": 3, "tensor_cores": 2, "convolution + involution": 4}
    for result in record["results"]:
        assert result["agrees"] and len(result["differences"]) == dtypes[result["family"]]
        assert all(0 <= difference < 0.03 for difference in result["differences"].values())
        assert len(result["cases"]) >= 4
    assert record["torch"] == torch.__version__ and {"device", "driver", "cuda", "checked"} <= record.keys()

    with monkeypatch.context() as patch:  # another driver, which keeps its own record
        patch.setattr(verification, "driver_of", lambda device: "999.1")
        assert verification.existing(library, "cpu") is None
        assert "999_1" in verification.record_path(library, "cpu").name
    assert verification.existing(library, "cpu") == record

    with library.open("ab") as file:  # another library under the same name
        file.write(b"\n")
    assert verification.existing(library, "cpu") is None


def test_families_that_disagree_are_named_and_replaced(library):
    """One lacks a barrier, one crashes and one hangs."""
    defects = "tiled_forward_kernel:barrier tensor_core_input_grad_kernel:abort tiled_kernel_grad_kernel:hang"
    output, errors = run(library, LOAD + USE, INVOLUTION_DEFECTS=defects)
    assert output.startswith("True True\n") and errors.count("RuntimeWarning: ") == 1
    for text in (output, errors):
        assert "involution2d, kernels of the family 'tiled': float32, channels-last, 2 x 32 x 17 x 11" in text
        assert "values are infinite or NaN where the definition is not" in text
        assert "involution2d_input_grad, kernels of the family 'tensor_cores': bfloat16, channels-last" in text
        assert "the process was ended by SIGABRT" in text
        assert "involution2d_kernel_grad, kernels of the family 'tiled'" in text
        assert "the process did not answer and was stopped" in text
    assert "Please report this" in errors
    assert "as defined: general, convolution + involution\n" in output
    assert "kernel_grad by general\nforward by general\nfused by tiled\n" in output

    refused = verification.refused([verification.existing(library, "cpu")])
    assert {(refusal["operator"], refusal["family"]) for refusal in refused} == {
        ("involution2d", "tiled"), ("involution2d_input_grad", "tensor_cores"), ("involution2d_kernel_grad", "tiled"),
    }  # fmt: skip


def test_code_without_tensor_cores_is_not_checked_for_them(library):
    """As of a library for sm_75, also on a later GPU."""
    output, errors = run(library, INVOLUTION_DEFECTS="tensor_cores:absent")
    assert output.startswith("True True\n") and "RuntimeWarning" not in errors
    assert "as defined: general, tiled, convolution + involution\n" in output and "refused" not in output


def test_without_general_kernels_plain_pytorch_runs(library):
    """Where the record cannot be written, the process keeps it."""
    read_only = 'mount -o bind,ro "$0" "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", read_only, str(library.parent)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this process must not mount")
    environment = {**os.environ, "INVOLUTION_DEFECTS": "input_grad_kernel:abort"}
    code = LOAD + "assert str(library) not in torch.ops.loaded_libraries"
    command += [sys.executable, "-c", code, str(library)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and result.stdout.startswith("False False\n"), result.stderr
    assert result.stderr.count("RuntimeWarning: ") == result.stderr.count("Checking the CUDA kernels") == 1
    assert "involution falls back to plain PyTorch on cuda" in result.stderr and "Please report this" in result.stderr
    for text in (result.stdout, result.stderr):
        assert "involution2d_input_grad, kernels of the family 'general': float64, channels-last" in text
    assert list(library.parent.iterdir()) == [library]


def test_a_check_that_cannot_run_is_no_disagreement(library, monkeypatch):
    """As on a GPU without free memory, or that only one process may use."""
    for executable, reason in (("/bin/false", "ended with status 1"), ("/nonexistent", "No such file")):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(
            RuntimeError, match=f"could not be compared with the definition .*{reason}.*involution.build"
        ):
            verification.records(library, ["cpu"])
    assert verification.existing(library, "cpu") is None


@pytest.mark.parametrize("spread", [0, 10])
def test_differences_are_seen(spread):
    torch.manual_seed(0)
    expected = torch.randn(2, 3, 9, 40, dtype=torch.float64)
    expected[0, 1, 4, 20] = torch.nan
    largest = expected[expected.isfinite()].abs().max().item()
    assert self_check.largest_difference(expected.clone(), expected, spread) == 0

    def changed(index: tuple, value: float) -> torch.Tensor:
        result = expected.clone()
        result[index] = value
        return result

    wrong = changed((1, 2, 8, 39), expected[1, 2, 8, 39] + 1)
    assert self_check.largest_difference(wrong, expected, spread) == pytest.approx(1 / largest)
    for index in ((0, 1, 5, 20), (0, 2, 4, 20), (0, 1, 4, 31)):  # another row, channel, or too far
        for value in (torch.nan, torch.inf):
            with pytest.raises(ValueError, match="1 values are infinite or NaN"):
                self_check.largest_difference(changed(index, value), expected, spread)
    with pytest.raises(ValueError, match="1 values are infinite or NaN"):
        self_check.largest_difference(changed((0, 1, 4, 20), 0), expected, spread)
    near = changed((0, 1, 4, 30), torch.nan)
    if spread:
        assert self_check.largest_difference(near, expected, spread) == 0
    else:
        with pytest.raises(ValueError, match="1 values are infinite or NaN"):
            self_check.largest_difference(near, expected, spread)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_kernels_agree_on_this_gpu():
    for record in verification.records(extension.find_or_build("cuda")):
        assert verification.refused([record]) == []
