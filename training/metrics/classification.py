"""Evaluates a classifier: top-1 and top-5 accuracy, loss, calibration error, confusion matrix."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from rednet.training.metrics.counts import calibration_sums, confusion_matrix, top_k_accuracy, top_k_hits
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor


def image_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width of the images that an image processor returns."""
    height, width = processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"].shape[2:]
    return height, width


def evaluate_classification(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> dict:
    """Top-1 and top-5 accuracy and the mean cross-entropy over all images of an `evaluation_loader`."""
    return summarize(sum_over_images(accelerator, model, loader, confusion=False))


@torch.no_grad()
def sum_over_images(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: DataLoader,
    class_order: list[int] | None = None,
    confusion: bool = True,
) -> dict[str, Tensor]:
    """The sums of `batch_sums` over all images of an `evaluation_loader`, on all processes.

    Args:
        class_order: the class of the model for each label, by default the same number.
        confusion: see `batch_sums`.
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        images, labels = (batch[name].to(accelerator.device, non_blocking=True) for name in ("pixel_values", "labels"))
        with accelerator.autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last)).logits.float()
        logits = logits if class_order is None else logits[:, class_order]
        for name, value in batch_sums(logits, labels, confusion).items():
            sums[name] = sums[name] + value if name in sums else value
    return accelerator.reduce(sums, "sum")


def batch_sums(logits: Tensor, labels: Tensor, confusion: bool = True) -> dict[str, Tensor]:
    """
    What the metrics of a classifier are made of. Sums of several batches add up.

    Args:
        logits: float32 (images, classes).
        labels: int64 (images,), or (images, labels) if images have several labels, filled up with -1. Rows without a
            label do not count: some fill up the last batches.
        confusion: whether the confusion matrix is one of the sums. It takes 8 bytes for each pair of classes: 3.8 GB
            for the 21,841 classes of ImageNet-21k.
    """
    counts = (labels >= 0).view(len(labels), -1).any(1)
    logits, labels = logits[counts], labels[counts]
    ranked = logits.topk(min(5, logits.shape[1])).indices
    if labels.dim() == 2:
        labels = best_labels(logits, ranked, labels)
    confidences = logits.softmax(1).gather(1, ranked[:, :1])[:, 0]
    # A sum over many images in float32 would lose digits. MPS has no float64.
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    sums = {
        "images": labels.new_tensor(len(labels)),
        "loss": F.cross_entropy(logits, labels, reduction="none").to(exact).sum(),
        "hits": top_k_hits(ranked, labels),
        "calibration": calibration_sums(ranked[:, 0], confidences.to(exact), labels),
    }
    return sums | ({"confusion": confusion_matrix(ranked[:, 0], labels, logits.shape[1])} if confusion else {})


def best_labels(logits: Tensor, ranked: Tensor, labels: Tensor) -> Tensor:
    """
    Of the labels of each image the one with the highest score. A prediction that is any of the labels is then right.

    Args:
        logits: (images, classes).
        ranked: the best classes of each image, int64 (images, k). Of equal scores, its order decides.
        labels: int64 (images, labels), filled up with -1.

    Returns:
        int64 (images,).
    """
    classes = logits.shape[1]
    allowed = torch.zeros(len(logits), classes + 1, dtype=torch.bool, device=logits.device)
    allowed = allowed.scatter_(1, labels.where(labels >= 0, classes), True)[:, :classes]
    best = logits.masked_fill(~allowed, -torch.inf).argmax(1)
    right = allowed.gather(1, ranked)
    first = ranked.gather(1, right.int().argmax(1, keepdim=True))[:, 0]
    return first.where(right.any(1), best)


def summarize(sums: dict[str, Tensor]) -> dict:
    """The results that all scripts report, from the sums over all images."""
    images = int(sums["images"])
    accuracies = {f"eval_{name}": value for name, value in top_k_accuracy(sums["hits"], images).items()}
    return {**accuracies, "eval_loss": sums["loss"].item() / images, "eval_samples": images}
