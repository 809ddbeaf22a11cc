"""Saving a checkpoint keeps the files of others."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rednet.training.engine.checkpoints import checkpoints, damage, save_checkpoint
from rednet.training.engine.run_folder import check_options
from rednet.training.utils.files import write_text


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    return accelerator


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_removes_only_its_own_checkpoints(accelerator, tmp_path):
    folder = tmp_path / "checkpoints"
    save_checkpoint(accelerator, folder, 1, limit=2)
    shutil.copytree(folder / "step_00000001", folder / "step_00000001_good")
    shutil.copytree(folder / "step_00000001", folder / "new")
    (folder / "step_notes").mkdir()
    (folder / "step_00000001/my notes.txt").write_text("keep")
    for step in (2, 3, 4):
        save_checkpoint(accelerator, folder, step, limit=2)
    expected = ["new", "step_00000001", "step_00000001_good", "step_00000003", "step_00000004", "step_notes"]
    assert names(folder) == expected
    assert names(folder / "step_00000001") == ["my notes.txt"]
    assert damage(folder / "step_00000001_good") is None and damage(folder / "new") is None
    assert checkpoints(folder)[-1] == folder / "step_00000004" and damage(folder / "step_00000004") is None


def test_a_checkpoint_of_the_same_step_is_replaced(accelerator, tmp_path):
    """Each time with another file in it."""
    save_checkpoint(accelerator, tmp_path, 1, limit=2)
    for note in ("a", "b", "c"):
        (tmp_path / "step_00000001" / note).touch()
        save_checkpoint(accelerator, tmp_path, 1, limit=2)
    assert damage(tmp_path / "step_00000001") is None and checkpoints(tmp_path)[0] == tmp_path / "step_00000001"
    assert sorted(path.name for path in tmp_path.rglob("[abc]")) == ["a", "b", "c"]


def test_an_output_folder_with_other_files_is_refused(tmp_path):
    check_options(str(tmp_path / "run"), {}, {})
    for name in ("best", "last"):
        (tmp_path / f"run/{name}").mkdir(parents=True)
        (tmp_path / f"run/{name}/README.md").write_text("mine")
        with pytest.raises(SystemExit, match=f"run/{name} is not a folder of a saved RedNet, but has README.md"):
            check_options(str(tmp_path / "run"), {}, {})
        (tmp_path / f"run/{name}/README.md").unlink()


def test_temporary_paths_are_not_those_of_others(tmp_path):
    (tmp_path / "results.json.new").write_text("mine")
    for text in ("{}", "{1}"):
        write_text(tmp_path / "results.json", text)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "results.json": "{1}",
        "results.json.new": "mine",
    }
