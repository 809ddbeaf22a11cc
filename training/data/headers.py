"""What the file of a picture says about it before its pixels are decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import fsspec
from PIL import ExifTags, Image
from rednet.training.data.problems import first_of


ORIENTATION_HINT = (
    ". Sizes, boxes and masks must match the picture as it is displayed. If they match the stored pixels, remove the "
    "EXIF orientation from the file"
)


@dataclass
class Header:
    """Size and format of a picture. Sizes are (width, height)."""

    size: tuple[int, int]  # as displayed, after the rotation that the EXIF orientation asks for
    stored_size: tuple[int, int]
    orientation: int  # of EXIF; 1 means that the pixels are stored as displayed
    mode: str
    format: str | None

    @property
    def has_hidden_rotation(self) -> bool:
        """Whether the picture is rotated or mirrored when it is read, although its size stays the same."""
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
        ValueError: the file does not exist or cannot be read.
    """
    try:
        with fsspec.open(stored["path"], "rb") if stored["bytes"] is None else BytesIO(stored["bytes"]) as file:
            image = Image.open(file)
            # The method of the base class, because that of PNG files decodes all pixels to find what follows them.
            orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
            size, turned = image.size, image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
            if image.format == "TIFF":  # Pillow already returns the displayed size of these
                size, turned = turned, size
            return Header(turned, size, orientation, image.mode, image.format)
    except Exception as error:  # Pillow raises errors of many types for damaged files
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read: {error}"
        raise ValueError(reason) from error


def read_picture_header(stored: dict) -> Header:
    """Like `read_header`, for a picture that the model sees, not a mask.

    Raises:
        ValueError: the file does not exist or cannot be read, or has more than 8 bits for each value.
    """
    header = read_header(stored)
    check_mode(header.mode)
    return header


def check_mode(mode: str) -> None:
    """Raises ValueError for pictures of 16 bits and more: their conversion to RGB would clip all values above 255."""
    if mode[0] in "IF":
        raise ValueError(f"its pixels are of the mode {mode}, expected 8 bits for each value")


def hidden_rotation_warning(names: Sequence[str], what: str) -> str:
    """A warning of pictures with `Header.has_hidden_rotation`: `what` may have been drawn on the stored pixels, and the
    size does not show it."""
    return (
        f"{len(names)} pictures have an EXIF orientation that does not show in their size: {first_of(names)}. They are "
        f"turned or mirrored when they are read: {what} must match the picture as it is displayed"
    )
