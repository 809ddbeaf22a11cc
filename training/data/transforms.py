"""From a stored picture to the input of the network. All randomness follows from a key, of an image or of a batch."""

import io
import math
from functools import cache

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from rednet.training.options.groups import AugmentationOptions, DenseAugmentationOptions, NormalizationOptions
from rednet.training.utils.randomness import seeded
from torchvision.transforms import v2


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
    image = Image.open(io.BytesIO(read_file(stored)))
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


class TrainingTransform:
    """Crops and augments an image at random: the same key gives the same pixels.

    Args:
        config: the augmentations.
        size: height and width of the result, in pixels.
    """

    def __init__(self, config: AugmentationOptions, size: int):
        self.size = size
        min_scale = config.random_crop_min_scale
        self.random_crop = None if min_scale is None else v2.RandomResizedCrop(size, scale=(min_scale, 1))
        self.augment = v2.Compose(augmentations(config))

    def __call__(self, image: Image.Image, key: tuple[int, ...]) -> np.ndarray:
        """Returns uint8 (size, size, 3)."""
        with seeded(*key):
            return np.array(self.augment(self.crop(image)))

    def crop(self, image: Image.Image) -> Image.Image:
        """A random crop, resized. A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if that is large enough."""
        (width, height), target = image.size, (self.size, self.size)
        if self.random_crop is None:
            return image.convert("RGB").resize(target, Image.Resampling.BILINEAR)
        box = self.random_crop.make_params([image])
        top, left, bottom, right = box["top"], box["left"], box["top"] + box["height"], box["left"] + box["width"]
        shrink = max(min(box["height"], box["width"]) / self.size, 1)
        image.draft("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
        x, y = image.size[0] / width, image.size[1] / height
        return image.convert("RGB").resize(
            target, Image.Resampling.BILINEAR, box=(left * x, top * y, right * x, bottom * y)
        )


def augmentations(config: AugmentationOptions) -> list[v2.Transform]:
    """The augmentations of an image after its crop."""
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(config.random_flip)]
    if config.color_jitter:
        steps.append(v2.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    if config.rand_augment_magnitude is not None:
        steps.append(v2.RandAugment(num_ops=2, magnitude=config.rand_augment_magnitude))
    return steps


def dense_augmentations(config: DenseAugmentationOptions) -> list[v2.Transform]:
    """The augmentations of an image together with its masks or boxes, after crop and resize."""
    distortion = [v2.RandomPhotometricDistort()] if config.photometric_distortion else []
    return [v2.RandomHorizontalFlip(config.random_flip), *distortion]


def make_mixing(config: AugmentationOptions, num_labels: int) -> v2.Transform | None:
    """MixUp, CutMix or a random choice of both for batches of images and labels; None if both are disabled.

    It turns labels (B,) into probabilities (B, num_labels).
    """
    kinds = ((v2.MixUp, config.mixup_alpha), (v2.CutMix, config.cutmix_alpha))
    chosen = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(chosen) if chosen else None


@cache
def channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """`values` as a tensor (C, 1, 1). Cached, because each new one makes the CPU wait for the GPU."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalize(images: torch.Tensor, config: NormalizationOptions) -> torch.Tensor:
    """Normalizes uint8 (B, 3, H, W) as the image processor does. Returns floats in channels-last format."""
    mean, std = (channel_values(tuple(values), images.device) for values in (config.image_mean, config.image_std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
