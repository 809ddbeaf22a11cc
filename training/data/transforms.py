"""From a stored picture to what the network sees. All randomness comes from a key: of an image, or of a batch."""

import io
import math
from functools import cache

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from rednet.training.options.groups import (
    AugmentationOptions,
    DenseAugmentationOptions,
    NormalizationOptions,
    TrainingConfig,
)
from rednet.training.utils.randomness import seeded
from torchvision.transforms import v2


def open_image(stored: dict) -> Image.Image:
    """A picture as `datasets` stores it, `{"bytes": ..., "path": ...}`, upright, its pixels not decoded yet."""
    content = stored["bytes"]
    if content is None:
        with fsspec.open(stored["path"], "rb") as file:  # a local path, or the address of a streamed file
            content = file.read()
    image = Image.open(io.BytesIO(content))
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


class TrainingTransform:
    """A picture to uint8 (size, size, 3), randomly cropped and changed: always the same for the same key."""

    def __init__(self, config: TrainingConfig):
        self.size = config.image_size
        min_scale = config.random_crop_min_scale
        self.crop = None if min_scale is None else v2.RandomResizedCrop(self.size, scale=(min_scale, 1))
        self.change = v2.Compose(changes(config))

    def __call__(self, image: Image.Image, key: tuple[int, ...]) -> np.ndarray:
        with seeded(*key):
            return np.array(self.change(self.cut(image)))

    def cut(self, image: Image.Image) -> Image.Image:
        """The crop in its final size. A JPEG is decoded at a half, a quarter or an eighth where that is enough."""
        (width, height), target = image.size, (self.size, self.size)
        if self.crop is None:
            return image.convert("RGB").resize(target, Image.Resampling.BILINEAR)
        box = self.crop.make_params([image])
        top, left, bottom, right = box["top"], box["left"], box["top"] + box["height"], box["left"] + box["width"]
        shrink = max(min(box["height"], box["width"]) / self.size, 1)
        image.draft("RGB", (math.ceil(width / shrink), math.ceil(height / shrink)))
        x, y = image.size[0] / width, image.size[1] / height
        return image.convert("RGB").resize(
            target, Image.Resampling.BILINEAR, box=(left * x, top * y, right * x, bottom * y)
        )


def changes(config: AugmentationOptions) -> list[v2.Transform]:
    """What happens to a picture after the crop."""
    steps = [v2.RandomHorizontalFlip(config.random_flip)]
    if config.color_jitter:
        steps.append(v2.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    if config.rand_augment_magnitude is not None:
        steps.append(v2.RandAugment(num_ops=2, magnitude=config.rand_augment_magnitude))
    return steps


def dense_changes(config: DenseAugmentationOptions) -> list[v2.Transform]:
    """What happens to a picture together with its masks or boxes, in the end."""
    distortion = [v2.RandomPhotometricDistort()] if config.photometric_distortion else []
    return [v2.RandomHorizontalFlip(config.random_flip), *distortion]


def make_mixing(config: AugmentationOptions, num_labels: int) -> v2.Transform | None:
    """What mixes the images of a batch, and makes their labels probabilities; None where nothing does."""
    kinds = ((v2.MixUp, config.mixup_alpha), (v2.CutMix, config.cutmix_alpha))
    chosen = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(chosen) if chosen else None


@cache
def of_channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(C, 1, 1). Made once for a device: each time it waits for a GPU."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalize(images: torch.Tensor, config: NormalizationOptions) -> torch.Tensor:
    """uint8 (B, 3, H, W) to the floats that the image processor gives, in channels-last."""
    mean, std = (of_channels(tuple(values), images.device) for values in (config.image_mean, config.image_std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
