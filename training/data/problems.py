"""Reports everything that is wrong with a data set at once, before the first step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import fsspec
from PIL import ExifTags, Image
from tqdm.auto import tqdm


MOST = 20  # that an error lists; the rest is counted
UPRIGHT = (
    ". Sizes, boxes and masks must be those of the picture as it is shown, upright: where they were drawn on its stored "
    "pixels, remove the EXIF orientation from its file"
)
THREADS = 16  # that read files: on a disk of a network most of the time is spent waiting


def raise_problems(problems: Iterable[str], source: str) -> None:
    """
    Raises:
        ValueError: there are problems. Each names the file or annotation, what was given and what was expected.
    """
    problems = list(problems)
    if problems:
        lines = [f"- {problem}" for problem in problems[:MOST]]
        if len(problems) > MOST:
            lines.append(f"- and {len(problems) - MOST} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError("\n".join([f"{source} has {count}:", *lines]))


def read_each(function: Callable[[Any], Any], items: Sequence, description: str) -> Iterator:
    """`function` of each of `items`, in their order, in threads, with a progress bar."""
    with ThreadPoolExecutor(THREADS) as threads:
        yield from tqdm(threads.map(function, items), total=len(items), desc=description, leave=False, delay=1)


@dataclass
class Header:
    """What a picture says of itself before its pixels are decoded. Sizes are (width, height)."""

    size: tuple[int, int]  # upright
    stored_size: tuple[int, int]
    orientation: int  # of EXIF: 1 is upright
    mode: str
    format: str

    @property
    def turned_unseen(self) -> bool:
        """Whether the picture is turned or mirrored when it is read, and its size does not tell."""
        return self.orientation != 1 and self.size == self.stored_size

    def __str__(self) -> str:
        text = f"{self.size[0]} x {self.size[1]}"
        if self.size != self.stored_size:
            text += (
                f" (stored as {self.stored_size[0]} x {self.stored_size[1]}, and turned when it is read because of "
                f"its EXIF orientation {self.orientation})"
            )
        return text


def read_header(stored: dict) -> Header:
    """
    Args:
        stored: a picture as `datasets` stores it, `{"bytes": ..., "path": ...}`.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with fsspec.open(stored["path"], "rb") if stored["bytes"] is None else BytesIO(stored["bytes"]) as file:
            image = Image.open(file)
            # Of the base class, because a PNG file would be decoded whole in search of what may follow its pixels.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
            size, turned = image.size, image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
            if image.format == "TIFF":  # Pillow gives the upright size of these
                size, turned = turned, size
            return Header(turned, size, orientation, image.mode, image.format)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error}"
        raise ValueError(reason) from error


def mode_problem(header: Header) -> str | None:
    """Pictures of 16 bits and more are not read: their conversion to RGB would cut off all above 255."""
    if header.mode[0] in "IF":
        return f"cannot be used: its pixels are of the mode {header.mode}, expected 8 bits for each value"
    return None


def turned_text(names: Sequence[str], what: str) -> str:
    """A warning of pictures of which `Header.turned_unseen` is true. Nothing says whether `what` was drawn on them as
    they are shown."""
    return (
        f"{len(names)} pictures have an EXIF orientation that does not show in their size: {first_of(names)}. They are "
        f"turned or mirrored when they are read: {what} must be those of the picture as it is shown"
    )


def first_of(names: Sequence) -> str:
    return ", ".join(str(name) for name in names[:5]) + (" ..." if len(names) > 5 else "")
