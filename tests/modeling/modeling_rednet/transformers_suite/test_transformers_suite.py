"""Transformers' own common tests pass on RedNet, and skip nothing that they run on Transformers' ResNet."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers
from filelock import FileLock


# Modules that the common tests import and that the source distribution leaves out. Nothing of them is used here.
LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin: pass",
    "generation/test_utils.py": "class GenerationTesterMixin: pass",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'return_dict': False}",
    "utils/tiny_model_summary.json": "{}",
    "distributed_testing_utils.py": "def __getattr__(name): return None",
}


@pytest.fixture(scope="module")
def suite(root) -> Path:
    """A folder with the package `tests` of the installed release of Transformers, kept in the virtual environment."""
    folder = Path(sys.prefix, f"transformers-{transformers.__version__}-tests")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            shutil.rmtree(f"{folder}.new", ignore_errors=True)
            download(Path(f"{folder}.new"))
            Path(f"{folder}.new").rename(folder)
    return folder


def download(folder: Path) -> None:
    release = f"transformers=={transformers.__version__}"
    options = ["--no-deps", "--no-binary=transformers", "--no-build-isolation", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", folder, release], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    shutil.move(folder / archive.name.removesuffix(".tar.gz") / "tests", folder / "tests")
    for name, text in {**LEFT_OUT, "__init__.py": ""}.items():
        path = folder / "tests" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
        (path.parent / "__init__.py").touch()
    (folder / "src").mkdir()
    (folder / "src/transformers").symlink_to(Path(transformers.__file__).parent)  # where the pipeline tests look


def results(folder: Path, report: Path, *selection: str) -> dict[str, str]:
    """Runs tests of `suite.py`: the outcome of each, passed, skipped, failure or error."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        f"--junitxml={report}",
    ]
    run = subprocess.run(
        [*command, *selection], cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').split('.')[-1]}::{case.get('name')}"
        outcomes[name] = next((child.tag for child in case if child.tag != "properties"), "passed")
    assert outcomes, run.stdout + run.stderr
    if {"failure", "error"} & set(outcomes.values()):
        print(run.stdout)
    return outcomes


def test_common_tests(suite, tmp_path):
    shutil.copy(Path(__file__).with_name("suite.py"), suite / "tests/test_rednet.py")
    ours = results(suite, tmp_path / "ours.xml", "tests/test_rednet.py", "-k", "RedNetModelTest or RedNetBackboneTest")
    assert {name for name, outcome in ours.items() if outcome not in ("passed", "skipped")} == set()
    assert list(ours.values()).count("passed") > 70

    skipped = [name for name, outcome in ours.items() if outcome == "skipped"]
    same = [f"tests/test_rednet.py::{name.replace('RedNet', 'ResNet', 1)}" for name in skipped]
    theirs = results(suite, tmp_path / "theirs.xml", *same)
    assert {name for name, outcome in theirs.items() if outcome != "skipped"} == set()
