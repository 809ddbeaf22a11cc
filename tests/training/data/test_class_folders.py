"""Images in one folder for each class."""

import os
import shutil

import numpy as np
import pytest
from datasets import Image
from PIL import Image as PILImage
from rednet.training.data import sources as data
from rednet.training.options.scripts import TrainingConfig


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_images(folders, streaming):
    """Nothing of the files is stored, so that streaming makes no difference."""
    config = TrainingConfig(train_dir=str(folders / "train"), validation_dir=str(folders / "val"), streaming=streaming)
    train, validation = data.load_images(config)
    assert data.class_names(train) == data.class_names(validation) == ["cat", "dog"]
    rows = [(row["image"], row["label"]) for row in train]
    assert sorted((np.array(image).max(), label) for image, label in rows) == sorted(
        (10 * n + label, label) for label, number in ((0, 12), (1, 4)) for n in range(number)
    )
    assert len(list(validation)) == 2


def test_linked_class_folders_are_followed(folders, tmp_path):
    """Classes, folders in a class, and pictures; upper-case suffixes count."""
    other = tmp_path / "other"
    (other / "deep/deeper").mkdir(parents=True)
    for name in ("deep/0.png", "deep/deeper/1.PNG"):
        PILImage.new("L", (8, 8)).save(other / name)
    (folders / "train/owl").symlink_to(other / "deep")
    (folders / "train/cat/linked").symlink_to(other / "deep/deeper")
    (folders / "train/dog/link.jpeg").symlink_to(other / "deep/0.png")
    (tmp_path / "link").symlink_to(folders / "train")
    train, _ = data.load_images(TrainingConfig(train_dir=str(tmp_path / "link"), train_val_split=0.25))
    images = data.read_source(TrainingConfig(train_dir=str(tmp_path / "link")))["train"]
    assert data.class_names(train) == ["cat", "dog", "owl"]
    assert [images["label"].count(label) for label in range(3)] == [13, 5, 2]
    paths = [image["path"] for image in images.cast_column("image", Image(decode=False))["image"]]
    assert str(tmp_path / "link/owl/deeper/1.PNG") in paths


def test_what_is_wrong_with_class_folders_is_named(folders):
    """All at once: nothing is left out without a word."""
    train = folders / "train"
    (train / "empty").mkdir()
    (train / "cat/gone.png").symlink_to("nowhere.png")
    (train / "dog/loop").symlink_to(train)
    (train / "dog/round").symlink_to("round")
    (train / "dog/zero.jpg").touch()
    (train / os.fsdecode(b"dog/\xff.png")).write_bytes((train / "cat/0.png").read_bytes())
    (train / "alone.png").write_bytes((train / "cat/0.png").read_bytes())
    (folders / "val/wolf").mkdir()
    config = TrainingConfig(train_dir=str(train), validation_dir=str(folders / "val"))
    with pytest.raises(ValueError) as raised:
        data.load_images(config)
    problems = [
        f"{train}/alone.png is not in a folder",
        f"{train}/cat/gone.png is a broken link to nowhere.png",
        f"{train}/dog/loop is a link to {train}, which contains it",
        f"{train}/dog/round is a broken link",
        f"{train}/dog/zero.jpg is empty",
        f"{train}/empty has no pictures",
        rf"{train}/dog/\udcff.png' has a name that is not UTF-8: rename it",
        f"{folders}/val has classes ['wolf']",
    ]
    assert str(raised.value).startswith(f"{train} and {folders}/val has 8 problems:")
    assert all(problem in str(raised.value) for problem in problems), str(raised.value)
    with pytest.raises(ValueError, match=r"other has no folders, expected one for each class"):
        (folders / "other").mkdir()
        data.load_images(TrainingConfig(train_dir=str(folders / "other"), train_val_split=0.5))


def test_files_that_are_no_pictures_are_named(folders, caplog):
    (folders / "train/cat/.DS_Store").write_bytes(b"0")
    (folders / "train/cat/notes.txt").write_text("a cat")
    (folders / "train/Thumbs.db").write_bytes(b"0")
    shutil.rmtree(folders / "val/dog")
    train, _ = data.load_images(TrainingConfig(train_dir=str(folders / "train"), validation_dir=str(folders / "val")))
    assert len(train) == 16
    first, second = caplog.messages
    assert "3 are no pictures and are not used" in first
    assert all(name in first for name in (".DS_Store", "notes.txt", "Thumbs.db"))
    assert second.endswith("1 classes have no pictures to evaluate on: dog")


def test_folders_with_unusual_names(folders, tmp_path):
    """Brackets are no pattern, and what editors hide in a folder is no class."""
    shutil.copytree(folders, tmp_path / "pictures [v2]")
    (tmp_path / "pictures [v2]/val/.ipynb_checkpoints").mkdir()
    train, val = (str(tmp_path / "pictures [v2]" / name) for name in ("train", "val"))
    images, _ = data.load_images(TrainingConfig(train_dir=train, validation_dir=val))
    assert len(images) == 16 and data.class_names(images) == ["cat", "dog"]
