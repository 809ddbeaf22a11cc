"""What `pip install` brings: an sdist, the wheel made of it, and both used where the repository is not."""

import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from environments import copy_sources, make_environment


SOURCES = {
    "src/involution": "involution",
    "modeling": "rednet",
    "training": "rednet/training",
    "configs": "rednet/configs",
    "hub_cards": "rednet/hub_cards",
}
SCRIPTS = [
    "train",
    "pack",
    "train_segmentation",
    "train_detection",
    "finetune",
    "evaluate_model",
    "predict",
    "ablate",
    "demo",
]


def files_in(folder: Path) -> set[Path]:
    """What belongs to the project: no caches, no builds, nothing hidden."""
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in paths if not any(part[0] == "." or part == "__pycache__" for part in path.parts)}


@pytest.fixture(scope="module")
def unpacked(root, tmp_path_factory) -> Path:
    """The files of the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    copy_sources(root, folder / "clone")
    build = f"import setuptools.build_meta as backend; backend.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "clone", check=True, capture_output=True)
    (archive,) = folder.glob("rednet-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def environment(unpacked, tmp_path_factory) -> Path:
    """A virtual environment with the wheel of the sdist, which finds the other packages where this process has them."""
    folder = tmp_path_factory.mktemp("environment")
    make_environment(folder, unpacked)
    return folder


@pytest.fixture(scope="module")
def installed(environment) -> Path:
    (packages,) = environment.glob("lib/python*/site-packages")
    return packages


def run(environment: Path, folder: Path, *arguments: str) -> str:
    """What Python prints in the environment, started in `folder`."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "bin/python"), *arguments]
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_sdist_has_what_the_repository_has(root, unpacked):
    for name in (
        "app",
        "benchmarks",
        "configs",
        "docs",
        "examples",
        "hub_cards",
        "modeling",
        "src/involution",
        "tests",
        "training",
    ):
        assert files_in(root / name) <= files_in(unpacked / name), name
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "LICENSE"):
        assert (unpacked / name).read_bytes() == (root / name).read_bytes()
    assert not list(unpacked.rglob("*.so"))  # the operator compiles at its first use


def test_the_wheel_has_every_file_that_is_used(root, installed):
    for source, package in SOURCES.items():
        wanted = files_in(root / source)
        assert len(wanted) > 5 and wanted <= files_in(installed / package), wanted - files_in(installed / package)
    assert not list(installed.glob("involution/**/*.so"))


def test_the_extras_are_complete(environment, tmp_path):
    """Everything that `pip install 'rednet[training]'` asks for is what the tests run with."""
    command = ["-m", "pip", "--python", str(environment / "bin/python"), "install", "--no-index", "--dry-run"]
    packages = [f"rednet[{extra}]" for extra in ("training", "hub", "export", "openvino", "app")]
    result = subprocess.run([sys.executable, *command, *packages], capture_output=True, text=True)
    assert result.returncode == 0 and "Would install" not in result.stdout, result.stdout + result.stderr


def test_the_installed_model_computes(environment, installed, tmp_path):
    code = """
import sys
from pathlib import Path

import torch
import involution, rednet
from transformers import AutoConfig, AutoModelForImageClassification
from rednet.hub.cards import known_checkpoints
from rednet.training.options.packaged import find_architecture

for module in (involution, rednet, rednet.training):
    assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
config = AutoConfig.from_pretrained(find_architecture("rednet-fashion-mnist"))
with torch.no_grad():
    logits = AutoModelForImageClassification.from_config(config).eval()(torch.randn(2, 3, 28, 28)).logits
assert logits.shape == (2, 10) and len(known_checkpoints()) == 5
assert "cpu: compiled (" in involution.show_config(), involution.show_config()
"""
    run(environment, tmp_path, "-c", code, str(installed))


def test_the_installed_scripts_train(environment, tmp_path):
    """Three steps of a packaged recipe, as `accelerate launch -m` starts them where no clone is."""
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:40], labels)):
        (tmp_path / f"digits/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype(np.uint8)).save(tmp_path / f"digits/{label}/{number}.png")
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "rednet.training.train"]
    options = ["--train_dir", "digits", "--train_val_split", "0.25", "--max_train_steps", "3", "--output_dir", "run"]
    options += ["--per_device_train_batch_size", "8", "--ignore_mismatched_sizes", "true"]
    run(environment, tmp_path, *launch, "--config", "fashion_mnist", *options)
    run(environment, tmp_path, "-m", "rednet.training.evaluate_model", "--model_name_or_path", "run/last",
        "--validation_dir", "digits", "--output_dir", "evaluation")  # fmt: skip
    assert (tmp_path / "run/last/model.safetensors").is_file() and (tmp_path / "evaluation/results.json").is_file()


def test_every_script_is_a_module_and_a_file(environment, root, tmp_path, capsys, monkeypatch):
    """`python -m rednet.training.train` where it is installed, `python training/train.py` in a clone: the same help."""
    assert {f"{name}.py" for name in SCRIPTS} == {path.name for path in (root / "training").glob("[!_]*.py")}
    code = """
import runpy, sys
for module in sys.argv[1:]:
    try:
        sys.argv = [module, "--help"]
        runpy.run_module(f"rednet.training.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        assert error.code == 0, module
"""
    monkeypatch.setenv("COLUMNS", "80")
    text = run(environment, tmp_path, "-c", code, *SCRIPTS)
    for name in SCRIPTS:
        path = str(root / f"training/{name}.py")
        monkeypatch.setattr(sys, "argv", [path, "--help"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
        help_text = capsys.readouterr().out
        assert stop.value.code == 0 and help_text.startswith(f"usage: {name}.py") and help_text in text


def test_imports_run_one_way(environment, installed, root, tmp_path):
    """The contracts of pyproject.toml, over the files that are installed: there the packages are where their names say."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run(environment, tmp_path, "-c", code, str(root / "pyproject.toml"), "--no-cache")


TYPED = """
from pathlib import Path

import torch
from rednet import (
    RedNetBackbone,
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    count_macs,
    count_parameters,
)
from rednet.hub import check_hub_folder, push_hub_folder

from involution import Involution2d, involution2d, involution2d_fused, show_config

layer: torch.nn.Module = Involution2d(64, kernel_size=(7, 7), stride=2, group_channels=8)
output: torch.Tensor = involution2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1, 1), padding=0)
fused: torch.Tensor = involution2d_fused(output, output, torch.ones(1, 1, 1, 1), torch.ones(1), 1)
config = RedNetConfig(num_labels=3, kernel_size=5, out_features=["stage1"], neck_type="involution")
model = RedNetForImageClassification(config).fuse()
backbone, segmenter = RedNetBackbone(config), RedNetForSemanticSegmentation(config)
sizes: list[int] = [count_parameters(model, trainable_only=True), count_macs(backbone, 224, 224)]
text: str = show_config()
check_hub_folder(Path("folder"))
push_hub_folder("folder", "user/name", private=True)
"""
WRONG = [
    'involution2d("image", torch.ones(1, 1, 1, 1, 1, 1))',
    "number: int = show_config()",
    "Involution2d(64, kernel=7)",
    "count_parameters(model, trainable=True)",
    "push_hub_folder(3, 4)",
]


# What --strict adds, for programs of users. One run of mypy checks these and our packages: it reads torch only once.
STRICT = """
[[tool.mypy.overrides]]
module = ["right", "wrong"]
disallow_any_generics = true
disallow_incomplete_defs = true
disallow_subclassing_any = true
disallow_untyped_calls = true
disallow_untyped_defs = true
extra_checks = true
implicit_reexport = false
strict_equality = true
warn_return_any = true
warn_unused_ignores = true
"""


def test_annotations_agree(installed, root, tmp_path):
    """
    mypy over all packages, of which pyproject.toml lists what it leaves out, and over two programs of users: the right
    one has no complaint, each mistake of the wrong one has one.
    """
    for name, text in (("right", TYPED), ("wrong", TYPED + "\n".join(WRONG))):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text() + STRICT)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=pyproject.toml",
        "--follow-imports=silent",
        "--cache-dir=cache",
    ]
    command += ["-p", "involution", "-p", "rednet", "-m", "right", "-m", "wrong"]
    variables = {**os.environ, "MYPYPATH": os.pathsep.join([str(installed), str(tmp_path)])}
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert errors and all(line.startswith("wrong.py") for line in errors), result.stdout + result.stderr
    first = TYPED.count("\n") + 1
    lines = {int(line.split(":")[1]) for line in errors}
    assert lines == set(range(first, first + len(WRONG))), result.stdout
