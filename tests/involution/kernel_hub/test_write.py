"""The operator as a Kernel Hub repository that `kernels` loads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
from huggingface_hub import ModelCard
from packaging.requirements import Requirement

import involution
from builds import SOURCE
from compilers import recording_compiler
from interpreter import python
from remote import WITHOUT_PACKAGES, run


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def source_files(folder: Path, root: Path) -> set[Path]:
    return {path.relative_to(root) for path in folder.rglob("*") if path.is_file()}


def test_each_compiler_makes_a_kernel_of_its_own(tmp_path):
    """With the same name, the second kernel would get the library of the first compiler from the cache."""
    shutil.copytree(Path(involution.__file__).parent, tmp_path / "source" / "involution")
    (tmp_path / "source" / "involution" / "csrc" / "involution2d_cpu.cpp").write_text(SOURCE)
    shutil.rmtree(tmp_path / "source" / "involution" / "csrc" / "cpu")
    environment = {"PYTHONPATH": str(tmp_path / "source"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    names = []
    for vendor in ("gnu", "llvm"):
        compiler = recording_compiler(tmp_path / vendor, f"{vendor} compiler 1.0")
        folder = tmp_path / f"from {vendor}"
        variables = {**os.environ, **environment, "CXX": compiler}
        result = python("-m", "involution.kernel_hub", "write", folder, "user/involution", env=variables)
        assert result.returncode == 0, result.stderr
        names += [path.name for path in folder.glob("build/*/*.so")]
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

    csrc = root / "src" / "involution" / "csrc"
    configuration = tomllib.loads((repository / "build.toml").read_text())
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
    for build in (repository / "build").glob("*/"):
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
names = ("", "_input_grad", "_kernel_grad", "_fused", "_fused_grad")
for name in (f"involution2d{suffix}" for suffix in names):
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


def test_the_card_is_a_template_of_kernel_builder(repository):
    """kernel-builder fills it in as Jinja does."""
    assert tomllib.loads((repository / "build.toml").read_text())["general"]["hub"] == {"repo-id": "user/involution"}
    template = jinja2.Template((repository / "CARD.md").read_text(), trim_blocks=True, keep_trailing_newline=True)
    card = (repository / "build" / "CARD.md").read_text()
    assert card == template.render(repo_id="user/involution") != template.render(repo_id="me/mine")
    metadata = ModelCard(card).data
    assert metadata.library_name == "kernels" and metadata.license == "apache-2.0"


def test_a_repository_needs_an_owner_and_a_name(tmp_path):
    result = python("-m", "involution.kernel_hub", "write", tmp_path / "kernel", "involution")
    assert result.returncode == 1 and "REPO is 'involution', expected OWNER/NAME" in result.stderr
    assert not (tmp_path / "kernel").exists()


def test_its_own_tests_pass(repository, binary, tmp_path):
    """kernel-builder runs them where a build has the name `involution`. There is no compiler."""
    (tmp_path / "involution").symlink_to(binary)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "markers=kernels_ci", "tests"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/nonexistent", "TORCH_EXTENSIONS_DIR": os.devnull + "/cache"}
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    result = subprocess.run(
        [*command, "-m", "kernels_ci", "-W", "error::RuntimeWarning"],
        cwd=repository,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "skipped" not in result.stdout, result.stdout + result.stderr


def test_the_benchmark_verifies_its_results(repository, binary):
    code = """
import sys
from pathlib import Path
import torch
torch.version.cuda = None  # so that `kernels benchmark` chooses the CPU
from kernels.cli import benchmark
(script,) = benchmark.discover_benchmark_scripts("kernel", Path(sys.argv[1]))
(workloads,) = benchmark.discover_benchmark_classes(script, Path(sys.argv[1]))
results, _ = benchmark.run_benchmark_class(workloads, 1, 0, sys.argv[1], True, "local")
print(*(result.verified for result in results.values()))
"""
    output, errors = run(code, repository, PATH="/nonexistent", TORCH_EXTENSIONS_DIR=os.devnull + "/cache")
    assert output.split() == ["True"] * 3 and "RuntimeWarning" not in errors
