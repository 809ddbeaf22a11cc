"""Real pictures that scikit-image and scikit-learn come with, and what is where in them."""

import numpy as np
import torch
from scipy import ndimage
from skimage import data, filters, measure, segmentation
from sklearn.datasets import load_sample_images
from torch import Tensor


COIN, FLOWER, SKY = 1, 2, 3


def coins() -> tuple[Tensor, Tensor]:
    """24 ancient coins: the picture (3, 303, 384) from 0 to 1, and for every pixel its coin, 1 to 24, or 0."""
    gray = data.coins()
    seeds = np.where(gray < 30, 1, np.where(gray > 150, 2, 0))
    coin = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(gray), seeds) == 2)
    numbers = measure.label(ndimage.binary_opening(coin, iterations=3))
    return torch.from_numpy(gray / 255).float().expand(3, -1, -1), torch.from_numpy(numbers)


def flower_and_sky() -> tuple[list[Tensor], list[Tensor]]:
    """A flower before dark leaves and a temple before a bright sky: pictures (3, 427, 640), classes (427, 640)."""
    temple, flower = (picture.astype(np.uint8) for picture in load_sample_images().images)
    classes = [
        FLOWER * (ndimage.median_filter(flower[..., 0], 15) > 140),
        SKY * (ndimage.median_filter(temple.min(2), 15) > 130),
    ]
    pictures = [torch.from_numpy(picture / 255).float().permute(2, 0, 1) for picture in (flower, temple)]
    return pictures, [torch.from_numpy(c) for c in classes]
