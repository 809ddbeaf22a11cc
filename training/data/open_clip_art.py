"""Open Clip Art, drawings by class from a Debian package, as folders of pictures for train.py.

    python -m rednet.training.data.open_clip_art

It writes `train` and `validation`, with one folder for each class, to outputs/data/open_clip_art. A class is one of the
top folders of the package. Drawings become RGB on white, 160 pixels on their longer edge. Those that exist twice are
left out, and those whose names differ by numbers only are all in the same split.
"""

import argparse
import hashlib
import os
import re
import struct
from collections import defaultdict
from pathlib import Path

from PIL import Image
from rednet.training.data.debian import DATA_DIRECTORY, debian_files
from tqdm.auto import tqdm


DEBIAN_PACKAGE = "openclipart-png"
DEBIAN_FILES = Path("usr/share/openclipart/png")
CLASSES = ["animals", "computer", "food", "geography", "office", "people"]
CLASSES += [
    "recreation",
    "signs_and_symbols",
    "tools",
    "transportation",
]  # 100 drawings or more; not `shapes`, mostly stars
MAX_PER_CLASS = 1000  # `computer` has twice as many, most of them icons
MAX_PIXELS = 20_000_000  # of a file; a few have 200 million
SIZE = 160
VALIDATION_SHARE = 0.25


def make_open_clip_art() -> Path:
    """
    The folder of the data set, which is written if it does not exist. The same package gives the same files.

    Raises:
        FileNotFoundError: the package is not available.
    """
    folder = DATA_DIRECTORY / "open_clip_art"
    if folder.is_dir():
        return folder
    files = debian_files(DEBIAN_PACKAGE, DEBIAN_FILES)
    if files is None:
        raise FileNotFoundError(f"install the Debian package {DEBIAN_PACKAGE} (its files are in /{DEBIAN_FILES})")
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    for path in tqdm(choose(files), unit="drawing"):
        relative = path.relative_to(files)
        target = temporary / split_of(relative) / relative.parts[0] / ("-".join(relative.parts[1:]))
        target.parent.mkdir(parents=True, exist_ok=True)
        read_drawing(path).save(target)
    temporary.rename(folder)
    return folder


def choose(files: Path) -> list[Path]:
    """The drawings of all classes, without copies. Of a class with too many, those with the smallest hashes."""
    chosen: dict[str, list[tuple[bytes, Path]]] = defaultdict(list)
    seen = set()
    for path in sorted(files.glob("*/**/*.png")):
        digest, name = hashlib.sha256(path.read_bytes()).digest(), path.relative_to(files).parts[0]
        if name in CLASSES and digest not in seen and number_of_pixels(path) <= MAX_PIXELS:
            seen.add(digest)
            chosen[name].append((digest, path))
    return [path for name in CLASSES for _, path in sorted(chosen[name])[:MAX_PER_CLASS]]


def number_of_pixels(path: Path) -> int:
    """Width times height of a PNG file, from its header."""
    with open(path, "rb") as file:
        width, height = struct.unpack(">16x2I", file.read(24))
    return width * height


def split_of(path: Path) -> str:
    """The split of a drawing, by its name without numbers: pictures of a series are alike."""
    series = re.sub(r"[^a-z]+", "", path.stem.lower())[:8]
    hashed = int.from_bytes(hashlib.sha256(f"{path.parts[0]}/{series}".encode()).digest()[:4], "big")
    return "validation" if hashed < VALIDATION_SHARE * 2**32 else "train"


def read_drawing(path: Path) -> Image.Image:
    """RGB on white, with a longer edge of at most SIZE pixels."""
    drawing = Image.open(path).convert("RGBA")
    background = Image.new("RGBA", drawing.size, "white")
    drawing = Image.alpha_composite(background, drawing).convert("RGB")
    drawing.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return drawing


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m rednet.training.data.open_clip_art",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    print(make_open_clip_art())
