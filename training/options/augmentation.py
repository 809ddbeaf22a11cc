"""The options of augmentation."""

from dataclasses import dataclass
from typing import Literal

from rednet.training.options.groups import option
from rednet.training.options.types import AutoAugment, Count, Natural, NotNegative, Probability, Scale


Interpolation = Literal["bilinear", "bicubic", "random"]
EraseMode = Literal["const", "rand", "pixel"]


@dataclass
class AugmentationOptions:
    random_crop_min_scale: Scale | None = option(
        0.08,
        "Minimum fraction of the image area that a random crop keeps. null resizes the whole image to a square instead.",
    )
    interpolation: Interpolation = option(
        "bilinear",
        "Interpolation that resizes the training images: bilinear, bicubic, or random, one of the two for each image.",
    )
    random_flip: Probability = option(0.5, "Probability of a horizontal flip.")
    color_jitter: Probability = option(0.0, "Maximum relative change of brightness, contrast and saturation.")
    auto_augment: AutoAugment | None = option(
        None,
        "trivial for TrivialAugment, or RandAugment as timm writes it: rand, then m (magnitude, 10), mstd (standard "
        "deviation of the magnitude, 0), mmax (its maximum, 10), n (operations for each image, 2), p (probability of "
        "each, 0.5) and inc1 (severity that increases with the magnitude), as in rand-m7-mstd0.5-inc1.",
    )
    random_erase_prob: Probability = option(
        0.0, "Probability of erasing a rectangle of an image, of 2 to 33 percent of its area."
    )
    random_erase_mode: EraseMode = option(
        "pixel",
        "What replaces an erased rectangle: the mean color (const), one random color (rand) or random pixels (pixel).",
    )
    random_erase_count: Count = option(
        1, "Maximum number of rectangles of an image: their number is random, and they share the area."
    )
    mixup_alpha: NotNegative = option(
        0.0, "Alpha of MixUp; 0 disables it. If CutMix is enabled as well, each batch gets one of the two at random."
    )
    cutmix_alpha: NotNegative = option(0.0, "Alpha of CutMix; 0 disables it.")
    mixup_prob: Probability = option(1.0, "Probability that a batch is mixed, if MixUp or CutMix is enabled.")
    mixup_switch_prob: Probability = option(
        0.5, "Probability that a batch is mixed by CutMix and not by MixUp, if both are enabled."
    )
    mixup_off_epoch: Natural = option(
        0, "Epoch, counted from 0, from which on MixUp and CutMix are disabled; 0 never disables them."
    )


@dataclass
class DenseAugmentationOptions:
    random_flip: Probability = option(0.5, "Probability of a horizontal flip.")
    photometric_distortion: bool = option(
        False, "Change brightness, contrast, saturation and hue at random, as in SSD."
    )
