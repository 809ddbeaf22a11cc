"""From a stored picture to the input of the network. All randomness follows from a key, of an image or of a batch."""

import io
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from rednet.training.options.augmentation import AugmentationOptions, DenseAugmentationOptions, Interpolation
from rednet.training.options.groups import NormalizationOptions
from rednet.training.utils.randomness import python_seeded, seeded
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2


RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def read_file(stored: dict) -> bytes:
    """The file of a picture as `datasets` stores it, `{"bytes": ..., "path": ...}`.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    if stored["bytes"] is not None:
        return stored["bytes"]
    with fsspec.open(stored["path"], "rb") as file:  # a local path, or the URL of a streamed file
        return file.read()


def open_image(stored: dict) -> Image.Image:
    """Opens a stored picture (see `read_file`), and applies its EXIF orientation.

    The pixels are decoded later, unless the orientation changes them.
    """
    file = io.BytesIO(read_file(stored))
    file.name = stored["path"] or "(without a path)"
    image = Image.open(file)
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


class TrainingTransform:
    """Crops and augments an image at random: the same key gives the same pixels.

    Args:
        config: the augmentations.
        mean: of each channel, for pixel values from 0 to 1: the color of what RandAugment moves into the image.
    """

    def __init__(self, config: AugmentationOptions, mean: Sequence[float]):
        self.interpolation, min_scale = config.interpolation, config.random_crop_min_scale
        # It chooses the box; `crop` resizes.
        self.random_crop = None if min_scale is None else v2.RandomResizedCrop(1, scale=(min_scale, 1))
        self.augment = v2.Compose(augmentations(config, mean))

    def __call__(self, image: Image.Image, key: tuple[int, ...], size: int) -> np.ndarray:
        """Returns uint8 (size, size, 3)."""
        with seeded(*key):
            return np.array(self.augment(self.crop(image, size)))

    def crop(self, image: Image.Image, size: int) -> Image.Image:
        """A random crop, resized. A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if that is large enough."""
        (width, height), target = image.size, (size, size)
        resample = choose_resample(self.interpolation)
        if self.random_crop is None:
            return as_rgb(image).resize(target, resample)
        top, left, box_height, box_width = self.choose_box(image)
        bottom, right = top + box_height, left + box_width
        shrink = max(min(box_height, box_width) / size, 1)
        image.draft("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
        x, y = image.size[0] / width, image.size[1] / height
        return as_rgb(image).resize(target, resample, box=(left * x, top * y, right * x, bottom * y))

    def choose_box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random crop, or of the whole image."""
        if self.random_crop is None:
            return 0, 0, image.height, image.width
        box = self.random_crop.make_params([image])
        return box["top"], box["left"], box["height"], box["width"]

    def collate(self, images: list[np.ndarray]) -> torch.Tensor:
        """The results of `__call__` as a batch, uint8 (B, 3, size, size)."""
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # a channels-last tensor, without a copy


def as_rgb(image: Image.Image) -> Image.Image:
    """The image itself if it is RGB, of which `convert` would make a copy."""
    return image if image.mode == "RGB" else image.convert("RGB")


def choose_resample(interpolation: Interpolation) -> Image.Resampling:
    """The method of Pillow; for `random`, one of the two, by torch's generator."""
    if interpolation == "random":
        interpolation = "bicubic" if torch.rand(()) < 0.5 else "bilinear"
    return RESAMPLE[interpolation]


def augmentations(config: AugmentationOptions, mean: Sequence[float]) -> list[Callable]:
    """The augmentations of an image after its crop."""
    steps: list[Callable] = [v2.RandomHorizontalFlip(config.random_flip)]
    if config.color_jitter:
        steps.append(v2.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    if config.auto_augment == "trivial":
        smooth = v2.InterpolationMode.BILINEAR if config.interpolation == "bilinear" else v2.InterpolationMode.BICUBIC
        steps.append(v2.TrivialAugmentWide(interpolation=smooth))
    elif config.auto_augment is not None:
        steps.append(RandAugment(config.auto_augment, config.interpolation, mean))
    return steps


class RandAugment:
    """RandAugment of timm, with random numbers that follow from torch's generator.

    Args:
        policy: for example `rand-m7-mstd0.5-inc1`.
        mean: see `TrainingTransform`.
    """

    def __init__(self, policy: str, interpolation: Interpolation, mean: Sequence[float]):
        options: dict[str, Any] = {"img_mean": tuple(round(255 * value) for value in mean)}
        if interpolation != "random":  # what timm does by itself
            options["interpolation"] = RESAMPLE[interpolation]
        self.transform = rand_augment_transform(policy, options)

    def __call__(self, image: Image.Image) -> Image.Image:
        with python_seeded():
            return self.transform(image)


def dense_augmentations(config: DenseAugmentationOptions) -> list[v2.Transform]:
    """The augmentations of an image together with its masks or boxes, after crop and resize."""
    distortion = [v2.RandomPhotometricDistort()] if config.photometric_distortion else []
    return [v2.RandomHorizontalFlip(config.random_flip), *distortion]


@cache
def channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """`values` as a tensor (C, 1, 1). Cached, because each new one makes the CPU wait for the GPU."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalize(images: torch.Tensor, config: NormalizationOptions) -> torch.Tensor:
    """Normalizes uint8 (B, 3, H, W) as the image processor does. Returns floats in channels-last format."""
    mean, std = (channel_values(tuple(values), images.device) for values in (config.image_mean, config.image_std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
