"""Descriptions of options in words, for model cards."""

from rednet.training.options.augmentation import AugmentationOptions
from rednet.training.options.scripts import CropOptions


def describe_augmentation(config: AugmentationOptions) -> str:
    """Describes the augmentations of `TrainingTransform` and `BatchAugmentation`."""
    words = []
    if config.random_crop_min_scale is not None:
        words.append(f"random crops of at least {config.random_crop_min_scale:g} of the area")
    if config.random_flip:
        words.append(f"flips with a probability of {config.random_flip:g}")
    if config.color_jitter:
        words.append(f"brightness, contrast and saturation changed by up to {config.color_jitter:g}")
    if config.auto_augment is not None:
        name = "TrivialAugment" if config.auto_augment == "trivial" else f"RandAugment ({config.auto_augment})"
        words.append(name)
    if config.random_erase_prob:
        words.append(f"random erasing with a probability of {config.random_erase_prob:g}")
    words += describe_mixing(config)
    return ", ".join(words) or "no random changes of the images"


def describe_mixing(config: AugmentationOptions) -> list[str]:
    alphas = {"MixUp": config.mixup_alpha, "CutMix": config.cutmix_alpha}
    kinds = [f"{name} with alpha {alpha:g}" for name, alpha in alphas.items() if alpha]
    if not kinds:
        return []
    share = f" of {100 * config.mixup_prob:g} % of the batches" if config.mixup_prob < 1 else ""
    end = f" until epoch {config.mixup_off_epoch}" if config.mixup_off_epoch else ""
    return [" or ".join(kinds) + share + end]


def describe_dense_augmentation(config: CropOptions) -> str:
    """Describes the augmentations of an image and its mask."""
    minimum, maximum = config.random_scale
    words = [f"random scales from {minimum:g} to {maximum:g}"] if minimum != maximum else []
    words += [f"scaled by {minimum:g}"] if minimum == maximum != 1 else []
    words.append("random crops of {} x {}".format(*config.crop_size))
    words += [f"flips with a probability of {config.random_flip:g}"] if config.random_flip else []
    words += ["photometric distortion"] if config.photometric_distortion else []
    return ", ".join(words)
