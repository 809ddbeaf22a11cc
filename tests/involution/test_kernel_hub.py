"""The operator as a Kernel Hub repository that `kernels` loads, and RedNet as remote code that uses it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.configuration_rednet import REMOTE_CODE

import involution
from builds import SOURCE
from compilers import quick_compiler, recording_compiler
from remote import WITHOUT_PACKAGES


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def run(code: str, *arguments, **environment: str) -> tuple[str, str]:
    """Output and errors of an interpreter that can import from tests/support."""
    support = Path(__file__).parent.parent / "support"
    path = os.pathsep.join(filter(None, [str(support), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def source_files(folder: Path, root: Path) -> set[Path]:
    return {path.relative_to(root) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kernel_hub")
    output, neighbor = folder / "involution", folder / ".involution.new"
    (folder / "elsewhere").mkdir()
    output.symlink_to("elsewhere")  # must not be replaced, because it could be a mount point
    neighbor.mkdir()
    (neighbor / "precious").touch()
    command = [sys.executable, "-m", "involution.kernel_hub", str(output)]
    environment = {"CXX": quick_compiler(folder / "compiler"), "TORCH_EXTENSIONS_DIR": str(folder / "cache")}
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (neighbor / "precious").exists() and output.is_symlink()
    names = {"involution", "elsewhere", ".involution.new", "cache", "compiler"}
    assert {path.name for path in folder.iterdir()} <= names
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and "which is not empty" in again.stderr
    return folder / "elsewhere"


@pytest.fixture(scope="module")
def binary(repository) -> Path:
    """The build that contains a library for this machine."""
    if sys.platform != "linux":
        pytest.skip("the library is made on Linux")
    return next(folder for folder in (repository / "build").iterdir() if folder.name != "torch-universal")


def test_each_compiler_makes_a_kernel_of_its_own(tmp_path):
    """With the same name, the second kernel would get the library of the first compiler from the cache."""
    shutil.copytree(Path(involution.__file__).parent, tmp_path / "source" / "involution")
    (tmp_path / "source" / "involution" / "csrc" / "involution2d_cpu.cpp").write_text(SOURCE)
    environment = {"PYTHONPATH": str(tmp_path / "source"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    names = []
    for vendor in ("gnu", "llvm"):
        compiler = recording_compiler(tmp_path / vendor, f"{vendor} compiler 1.0")
        command = [sys.executable, "-m", "involution.kernel_hub", str(tmp_path / f"from {vendor}")]
        variables = {**os.environ, **environment, "CXX": compiler}
        result = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        names += [path.name for path in (tmp_path / f"from {vendor}").glob("build/*/*.so")]
    assert len(set(names)) == 2


def test_the_parser_of_the_configuration_is_installed(root):
    """Python 3.11 and later contain it."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for version, expected in (("3.10", True), ("3.11", False)):
        required = [Requirement(text) for text in project["dependencies"]]
        required = [r.name for r in required if r.marker is None or r.marker.evaluate({"python_version": version})]
        assert ("tomli" in required) == expected


def test_the_configuration_names_exactly_the_sources_that_exist(root, repository):
    from kernels._rust import Build, Digest, DigestAlgorithm, Metadata

    kernel_hub, csrc = root / "src" / "involution" / "kernel_hub", root / "src" / "involution" / "csrc"
    configuration = tomllib.loads((kernel_hub / "build.toml").read_text())
    kernels = configuration["kernel"].values()
    named = {path for section in [configuration["torch"], *kernels] for path in section["src"]}
    assert all((repository / path).is_file() for path in named)
    sources = {f"torch-ext/involution/{path}" for path in source_files(csrc, csrc.parent)}
    assert named == sources | {"torch-ext/torch_binding.cpp"}
    # Each library is compiled from the files in its own list: they include no others.
    for kernel in kernels:
        files = {(repository / path).resolve() for path in kernel["src"]}
        for file in files:
            lines = file.read_text().splitlines()
            includes = {line.split('"')[1] for line in lines if line.startswith('#include "')}
            assert {(file.parent / include).resolve() for include in includes} <= files

    # Each build contains all of them and the Python files, and passes the checks of `kernels`.
    backends = {str(backend).lower() for backend in Build.open(repository).general.backends}
    assert {kernel["backend"] for kernel in kernels} == {backend.split(".")[-1] for backend in backends}
    extensions = {path.suffix[1:] for path in (repository / "torch-ext" / "involution").rglob("*") if path.is_file()}
    assert extensions == set(configuration["torch"]["pyext"])
    for build in (repository / "build").iterdir():
        assert source_files(build / "csrc", build) == source_files(csrc, csrc.parent)
        metadata = Metadata.read_from_file(build / "metadata.json")
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, build))
        assert str(metadata.name) == "involution" and metadata.version == configuration["general"]["version"]


def test_what_users_call_works_when_loaded_through_kernels(repository, binary):
    code = """
from pathlib import Path
import torch
from kernels import get_local_kernel, get_loaded_kernels
from cases import Case, check_fused, check_operators, plain_involution

involution = get_local_kernel(Path(sys.argv[1]), backend="cpu")
assert not {"rednet", "involution"} & set(sys.modules)
assert involution.operators.name == get_loaded_kernels()[0].metadata.id
assert involution.operators.involution2d.default.has_kernel_for_dispatch_key("CPU")
assert "cpu: compiled, came with the kernel" in involution.show_config()

for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for size in ((7, 7), (2, 5)):
        for group_channels, layout in ((16, "channels_last"), (5, "contiguous")):
            case = Case(2, 2, group_channels, (14, 15), size, (1, 2), (3, 3), (1, 1), dtype, layout, layout)
            check_operators(involution.operators, case)
            check_fused(involution.operators, case, 20, True, True)

torch.manual_seed(0)
input, kernel = torch.randn(2, 8, 5, 6).double().requires_grad_(), torch.randn(2, 2, 3, 3, 5, 6).double().requires_grad_()
arguments = [1, 1], [1, 1], [1, 1]
output = involution.involution2d(input, kernel)
torch.testing.assert_close(output, plain_involution(input, kernel, *arguments))
torch.autograd.gradcheck(involution.involution2d, (input, kernel))
torch.library.opcheck(involution.operators.involution2d, (input, kernel, *arguments))
compiled = torch.compile(involution.involution2d, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(input, kernel), output)
with torch.autocast("cpu"):
    assert involution.involution2d(input.float(), kernel.float()).dtype == torch.bfloat16
    assert involution.Involution2d(32)(torch.randn(1, 32, 9, 9)).dtype == torch.bfloat16
layer = involution.Involution2d(32, kernel_size=3).double()
features = layer.reduce(image := torch.randn(1, 32, 6, 6).double().requires_grad_())
expected = involution.involution2d(image, layer.span(features).unflatten(1, (2, 3, 3)))
torch.testing.assert_close(layer(image), expected)
generation = features, layer.span.weight, layer.span.bias
normalized = involution.involution2d_batch_norm(image, *generation, None, None, kernel_size=3)
torch.testing.assert_close(normalized, torch.nn.functional.batch_norm(expected, None, None, training=True))
expected_grads = torch.autograd.grad(expected.square().sum(), [image, layer.span.weight])
torch.testing.assert_close(torch.autograd.grad(layer(image).square().sum(), [image, layer.span.weight]), expected_grads)
"""
    # There is no compiler: compiled kernels are those of the repository.
    _, errors = run(
        WITHOUT_PACKAGES + code, repository, PATH="/nonexistent", TORCH_EXTENSIONS_DIR=os.devnull + "/cache"
    )
    assert "RuntimeWarning" not in errors


def test_builds_and_package_share_a_process_and_their_schemas(repository, binary):
    code = """
import sys
from pathlib import Path
import torch, involution
from kernels import get_local_kernel
loaded = [involution, *(get_local_kernel(Path(folder)) for folder in sys.argv[1:])]
names = {module.operators.name for module in loaded}
assert len(names) == 3 and "involution" in names
for name in ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad", "involution2d_fused"):
    schemas = {str(getattr(module.operators, name).default._schema).split("::")[1] for module in loaded}
    assert len(schemas) == 1, schemas
input, kernel = torch.randn(2, 32, 9, 8), torch.randn(2, 2, 3, 3, 9, 8)
for module in loaded[1:]:
    torch.testing.assert_close(module.involution2d(input, kernel), involution.involution2d(input, kernel))
print(loaded[1].show_config(), loaded[2].show_config())
"""
    # There is no compiler: the universal build reports that and computes in plain PyTorch.
    environment = {"PATH": "/nonexistent", "TORCH_EXTENSIONS_DIR": os.devnull + "/cache"}
    output, _ = run(code, repository / "build" / "torch-universal", binary, **environment)
    assert "cpu: plain PyTorch, because" in output and "cpu: compiled, came with the kernel" in output


AUTO_MAP = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
}
REMOTE = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageClassification

class Recorder(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names.add(func._schema.name)
        return func(*args, **(kwargs or {}))

names, images = set(), torch.load(sys.argv[2])
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True).to(images.dtype)
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True, backend="eager")(images).logits
    print("compiled", flush=True)
    print("compiled", file=sys.stderr)
    with Recorder():
        logits = model(images).logits
torch.testing.assert_close(compiled, logits)
model.train()(images).logits.square().sum().backward()
assert not {"rednet", "involution"} & set(sys.modules)
torch.save((logits, {name: parameter.grad for name, parameter in model.named_parameters()}), sys.argv[2])
print(*sorted(name for name in names if "involution2d" in name))
"""
WARNING = "RedNet's involutions run in plain PyTorch"


@pytest.fixture(scope="module")
def model() -> RedNetForImageClassification:
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[2], num_labels=3, auto_map=AUTO_MAP)
    model = RedNetForImageClassification(config).eval()
    torch.nn.init.ones_(model.rednet.encoder.stages[0].layers[1].layer[2].normalization.weight)
    return model


def run_remotely(model, root: Path, folder: Path, **environment: str) -> tuple[str, str]:
    """Compares logits and gradients of remote code with those of the package. Returns its output and errors."""
    model.save_pretrained(folder)
    for source in REMOTE_CODE:
        (folder / source).write_text((root / "modeling" / source).read_text())
    images = torch.randn(2, 3, 33, 50, dtype=torch.float64)
    torch.save(images, folder / "tensors.pt")
    result = run(
        WITHOUT_PACKAGES + REMOTE, folder, folder / "tensors.pt", HF_HOME=str(folder / "cache"), **environment
    )
    logits, grads = torch.load(folder / "tensors.pt")

    expected = RedNetForImageClassification.from_pretrained(folder).double()
    with torch.no_grad():
        torch.testing.assert_close(logits, expected(images).logits, rtol=1e-12, atol=1e-12)
    expected.train()(images).logits.square().sum().backward()
    torch.testing.assert_close(grads, {name: p.grad for name, p in expected.named_parameters()}, rtol=1e-9, atol=1e-9)
    return result


@pytest.mark.parametrize("source", ["a folder", "user/involution"])
def test_remote_code_uses_the_kernel_that_is_named(source, model, root, repository, binary, tmp_path):
    # LOCAL_KERNELS makes `kernels` load a folder instead of a repository of the Hub.
    environment = {"REDNET_KERNEL": source, "LOCAL_KERNELS": f"user/involution={repository}"}
    if source == "a folder":
        environment = {"REDNET_KERNEL": str(repository)}
    output, errors = run_remotely(model, root, tmp_path, PATH="/nonexistent", **environment)
    assert WARNING not in errors and "RuntimeWarning" not in errors
    library = next(binary.glob("*.so"))
    assert output.split("\n")[1] == f"{library.stem}::involution2d_fused"


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"REDNET_KERNEL": ""}, "(No module named 'involution')"),
        ({"REDNET_KERNEL": "nobody/nothing"}, "(REDNET_KERNEL=nobody/nothing cannot be loaded: "),
    ],
)
def test_remote_code_without_the_operator_says_so_once(environment, reason, model, root, tmp_path):
    output, errors = run_remotely(model, root, tmp_path, **environment)
    assert output.split("\n")[1] == ""
    # No warning during graph capture, and one in all later passes and layers.
    during, after = errors.split("compiled\n", 1)
    assert WARNING not in during and after.count(WARNING) == 1
    assert reason in after and "`pip install .`" in after and "set REDNET_KERNEL" in after
