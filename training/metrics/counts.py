"""Counts and sums over images or pixels, and the metrics that follow from them.

Counts of batches and of processes add up, so a metric is computed once, from the counts of all images.
"""

import numpy as np
import torch
from torch import Tensor


NUM_BINS = 15


def top_k_hits(ranked: Tensor, labels: Tensor) -> Tensor:
    """
    Args:
        ranked: the classes of each image in descending order of their scores, int64 (images, k). Equal scores have an
            order too, so that a model with constant scores is right by chance only.
        labels: int64 (images,).

    Returns:
        The number of images whose label is the first class, and is among the first five classes: int64 (2,).
    """
    hits = ranked[:, :5] == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.any(1).sum()])


def top_k_accuracy(hits: Tensor, num_images: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy, from 0 to 1, of the sums of `top_k_hits`."""
    first, five = hits.tolist()
    return {"accuracy": first / num_images, "top_5_accuracy": five / num_images}


def calibration_sums(predictions: Tensor, confidences: Tensor, labels: Tensor) -> Tensor:
    """
    The sum of (1 if the prediction is right, else 0) - confidence over the images of each of 15 bins of equal width.
    Bin m has the confidences in ((m - 1) / 15, m / 15].

    Args:
        predictions, labels: int64 (images,).
        confidences: probability of the predicted class, (images,).

    Returns:
        (15,), of the type of `confidences`.
    """
    edges = torch.from_numpy(np.linspace(0, 1, NUM_BINS + 1)[1:-1]).to(confidences)
    differences = (predictions == labels).to(confidences.dtype) - confidences
    return torch.bincount(torch.bucketize(confidences, edges), differences, NUM_BINS).to(confidences.dtype)


def calibration_error(sums: Tensor, num_images: int) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) of the sums of `calibration_sums`.

    It is the mean over the bins, weighted by their images, of |accuracy - mean confidence|. The number of images of a
    bin cancels out.
    """
    return sums.abs().sum().item() / num_images


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """
    Args:
        predictions, labels: int64, of one shape. Images or pixels whose label is not a class do not count.

    Returns:
        int64 (num_classes, num_classes): a row for each true class, a column for each predicted class.
    """
    labeled = (labels >= 0) & (labels < num_classes)
    cells = num_classes * labels[labeled] + predictions[labeled]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_accuracy(matrix: Tensor) -> Tensor:
    """The recall of each class from a confusion matrix, float64 (num_classes,); nan for classes without images."""
    return matrix.diag().double() / matrix.sum(1)
