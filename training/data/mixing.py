"""Augmentation of a batch on the device: random erasing, then MixUp or CutMix."""

import torch
from rednet.training.options.augmentation import AugmentationOptions
from rednet.training.utils.randomness import python_seeded
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2


class BatchAugmentation:
    """Erases rectangles of normalized images and mixes the images, with random numbers from torch's generators.

    Args:
        config: the augmentations.
        num_labels: number of classes.
        device: of the images.
    """

    def __init__(self, config: AugmentationOptions, num_labels: int, device: torch.device):
        self.config, self.erasing = config, None
        if config.random_erase_prob > 0:
            self.erasing = RandomErasing(
                config.random_erase_prob,
                mode=config.random_erase_mode,
                max_count=config.random_erase_count,
                device=device,
            )
        self.mixup = v2.MixUp(alpha=config.mixup_alpha, num_classes=num_labels) if config.mixup_alpha else None
        self.cutmix = v2.CutMix(alpha=config.cutmix_alpha, num_classes=num_labels) if config.cutmix_alpha else None

    def __call__(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: float (B, 3, H, W), normalized. Rectangles are erased in place.
            labels: int64 (B,).
            epoch: counted from 0.

        Returns:
            The images, and their labels, or their probabilities (B, num_labels) if the batch is mixed.
        """
        if self.erasing is not None:
            with python_seeded():
                images = self.erasing(images)
        mixing = self.choose_mixing(epoch)
        return (images, labels) if mixing is None else mixing(images, labels)

    def choose_mixing(self, epoch: int) -> v2.Transform | None:
        """MixUp or CutMix for the next batch, or None."""
        config = self.config
        if self.mixup is None and self.cutmix is None:
            return None
        if 0 < config.mixup_off_epoch <= epoch or torch.rand(()) >= config.mixup_prob:
            return None
        if self.mixup is None or self.cutmix is None:
            return self.mixup or self.cutmix
        return self.cutmix if torch.rand(()) < config.mixup_switch_prob else self.mixup
