"""Descriptions of options in words, for model cards."""

from rednet.training.options.groups import AugmentationOptions, CropOptions


def describe_augmentation(config: AugmentationOptions) -> str:
    """Describes the augmentations of `TrainingTransform` and `make_mixing`."""
    words = []
    if config.random_crop_min_scale is not None:
        words.append(f"random crops of at least {config.random_crop_min_scale:g} of the area")
    if config.random_flip:
        words.append(f"flips with a probability of {config.random_flip:g}")
    if config.color_jitter:
        words.append(f"brightness, contrast and saturation changed by up to {config.color_jitter:g}")
    if config.rand_augment_magnitude is not None:
        words.append(f"RandAugment of magnitude {config.rand_augment_magnitude}")
    words += [f"MixUp with alpha {config.mixup_alpha:g}"] if config.mixup_alpha else []
    words += [f"CutMix with alpha {config.cutmix_alpha:g}"] if config.cutmix_alpha else []
    return ", ".join(words) or "no random changes of the images"


def describe_dense_augmentation(config: CropOptions) -> str:
    """Describes the augmentations of an image and its mask."""
    minimum, maximum = config.random_scale
    words = [f"random scales from {minimum:g} to {maximum:g}"] if minimum != maximum else []
    words += [f"scaled by {minimum:g}"] if minimum == maximum != 1 else []
    words.append("random crops of {} x {}".format(*config.crop_size))
    words += [f"flips with a probability of {config.random_flip:g}"] if config.random_flip else []
    words += ["photometric distortion"] if config.photometric_distortion else []
    return ", ".join(words)
