"""Decoding of training images on the GPU, by nvJPEG through torchvision.

The workers read the files and choose crop and flip. The process that trains decodes the files and applies both. This is
for JPEG files; the workers decode all others themselves.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageFile
from rednet.training.data.transforms import TrainingTransform, choose_resample
from rednet.training.options.augmentation import AugmentationOptions
from rednet.training.utils.randomness import seeded
from torch import Tensor
from torchvision.transforms.v2 import functional as F


MODES = {
    Image.Resampling.BILINEAR: F.InterpolationMode.BILINEAR,
    Image.Resampling.BICUBIC: F.InterpolationMode.BICUBIC,
}


@dataclass
class CroppedFile:
    """A JPEG file, and what makes a training image of it."""

    name: str
    content: bytes
    box: tuple[int, int, int, int]  # top, left, height, width
    size: int  # height and width after the crop is resized
    interpolation: F.InterpolationMode
    flipped: bool


class FileTransform(TrainingTransform):
    """A `TrainingTransform` that leaves JPEG files to `decode_files`. The same key gives the same crop and flip."""

    def __init__(self, config: AugmentationOptions, mean: Sequence[float]):
        super().__init__(config, mean)
        self.random_flip = config.random_flip

    def __call__(  # type: ignore[override]
        self, image: Image.Image, key: tuple[int, ...], size: int
    ) -> CroppedFile | np.ndarray:
        """Returns uint8 (size, size, 3) if the picture is not a JPEG file, is CMYK, or was turned by its EXIF
        orientation."""
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):  # a turned picture has no format
            return super().__call__(image, key, size)
        file = cast(io.BytesIO, cast(ImageFile.ImageFile, image).fp)
        with seeded(*key):
            mode, box = MODES[choose_resample(self.interpolation)], self.choose_box(image)
            flipped = bool(torch.rand(1) < self.random_flip)
        return CroppedFile(file.name, file.getvalue(), box, size, mode, flipped)

    def collate(self, images: list) -> list:  # type: ignore[override]
        """`images` itself, for `decode_files`."""
        return images


def decode_files(images: list[CroppedFile | Tensor], device: torch.device) -> Tensor:
    """
    Decodes, crops, resizes and flips on `device`.

    Args:
        images: files, and images that are decoded, uint8 (size, size, 3) on `device`.

    Returns:
        uint8 (B, 3, size, size).

    Raises:
        ValueError: a file cannot be decoded. The message has its name.
    """
    files = [image for image in images if isinstance(image, CroppedFile)]
    decoded = iter(decode(files, device))
    crops = [
        crop(next(decoded), image) if isinstance(image, CroppedFile) else image.permute(2, 0, 1) for image in images
    ]
    return torch.stack(crops)


def decode(files: list[CroppedFile], device: torch.device) -> list[Tensor]:
    """The pixels of whole files, uint8 (3, H, W)."""
    from torchvision.io import decode_jpeg  # deprecated: only a training that uses it fails if it is removed

    if not files:  # an error of torchvision
        return []
    contents = [torch.frombuffer(bytearray(file.content), dtype=torch.uint8) for file in files]
    try:
        return decode_jpeg(contents, "RGB", device)
    except RuntimeError as error:  # it does not say which
        if len(files) > 1:
            return [pixels for file in files for pixels in decode([file], device)]
        raise ValueError(f"the image {files[0].name} cannot be decoded on {device}: {error}") from error


def crop(pixels: Tensor, file: CroppedFile) -> Tensor:
    size = [file.size, file.size]
    cropped = F.resized_crop(pixels, *file.box, size, file.interpolation, antialias=True)
    return F.horizontal_flip(cropped) if file.flipped else cropped
