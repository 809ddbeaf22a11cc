"""Open Clip Art from files as the Debian package has them."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from rednet.training.data import debian, open_clip_art
from rednet.training.data.class_folders import read_class_folders


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """A small package: two classes, a folder that is no class, a copy, a series, and a drawing that is too large."""
    files = tmp_path / "installed"
    rng = np.random.default_rng(0)

    def draw(name: str, size: tuple[int, int] = (30, 20), mode: str = "RGB") -> None:
        path = files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8)
        Image.fromarray(pixels, mode).save(path)

    for number in range(40):
        draw(f"animals/mammals/{chr(97 + number % 26)}{chr(97 + number // 26)}creature.png")
        draw(f"tools/hammer_{number:02}.png")
    draw("animals/large.png", (400, 300), "RGBA")
    draw("logos/debian.png")
    (files / "animals/copy.png").write_bytes((files / "animals/mammals/aacreature.png").read_bytes())
    draw("tools/huge.png", (50, 50))
    monkeypatch.setattr(open_clip_art, "MAX_PIXELS", 400 * 300)
    monkeypatch.setattr(open_clip_art, "DEBIAN_FILES", files)  # an absolute path stays what it is
    for module in (debian, open_clip_art):
        monkeypatch.setattr(module, "DATA_DIRECTORY", tmp_path / "data")
    return files


def test_classes_splits_and_pixels(drawings):
    folder = open_clip_art.make_open_clip_art()
    written = {
        split: sorted(path.name for path in (folder / split).rglob("*.png")) for split in ("train", "validation")
    }
    assert {path.parent.name for path in folder.rglob("*.png")} == {"animals", "tools"}
    names = written["train"] + written["validation"]
    assert len(names) == len(set(names)) == 40 + 40 + 2  # neither the logo nor the copy
    hammers = [split for split, files in written.items() if any("hammer" in name for name in files)]
    assert len(hammers) == 1  # a series is not divided
    share = sum("creature" in name for name in written["validation"]) / 40
    assert 0.05 < share < 0.5

    stored = next(folder.rglob("large.png"))
    with Image.open(stored) as image, Image.open(drawings / "animals/large.png") as original:
        assert image.mode == "RGB" and image.size == (160, 120)
        white = Image.new("RGB", original.size, "white")
        white.paste(original, mask=original.getchannel("A"))
        difference = np.asarray(image, int) - np.asarray(white.resize((160, 120), Image.Resampling.LANCZOS), int)
    assert abs(difference).max() <= 2
    splits = read_class_folders({"train": str(folder / "train")})
    assert splits["train"].num_rows == len(written["train"])


def test_large_drawings_and_too_many_are_left_out(drawings, monkeypatch):
    monkeypatch.setattr(open_clip_art, "MAX_PIXELS", 50 * 50 - 1)
    monkeypatch.setattr(open_clip_art, "MAX_PER_CLASS", 30)
    folder = open_clip_art.make_open_clip_art()
    names = [path.name for path in folder.rglob("*.png")]
    assert len(names) == 30 + 30 and not any("huge" in name or "large" in name for name in names)
    again = folder.rename(folder.with_name("first"))
    assert sorted(path.relative_to(again) for path in again.rglob("*.png")) == sorted(
        path.relative_to(folder) for path in open_clip_art.make_open_clip_art().rglob("*.png")
    )


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip_art, "DEBIAN_FILES", tmp_path / "missing")
    monkeypatch.setattr(open_clip_art, "DATA_DIRECTORY", tmp_path / "data")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError, match="openclipart-png"):
        open_clip_art.make_open_clip_art()


def test_help_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["open_clip_art", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(open_clip_art.__file__, run_name="__main__")
    assert "one folder for each class" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
