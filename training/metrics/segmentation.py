"""Evaluates segmentation: intersection over union of each class, over the pixels of all images together."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rednet.training.metrics.counts import confusion_matrix, per_class_accuracy
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


def summarize(matrix: Tensor, names: dict[int, str]) -> dict:
    """The results, from 0 to 1, of a confusion matrix of pixels. Means leave out classes that are undefined: those
    without labeled pixels, and for the IoU also without predicted ones.
    """
    matrix = matrix.cpu().double()
    hits, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou = hits / (true + predicted - hits)
    return {
        "mean_iou": iou.nanmean().item(),
        "overall_accuracy": (hits.sum() / matrix.sum()).item(),
        "mean_accuracy": per_class_accuracy(matrix).nanmean().item(),
        "per_category_iou": {names[n]: value for n, value in enumerate(iou.tolist()) if value == value},
    }


@torch.no_grad()
def evaluate_segmentation(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, names: dict[int, str]
) -> dict:
    """`summarize` over a loader of `EvaluationPairs`: whole images, with logits upsampled to the size of their masks.

    Args:
        names: of the classes.
    """
    model.eval()
    matrix = torch.zeros(len(names), len(names), dtype=torch.int64, device=accelerator.device)
    samples = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        for image, labels in zip(batch["pixel_values"], batch["labels"]):
            image, labels = (tensor.to(accelerator.device, non_blocking=True) for tensor in (image, labels))
            with accelerator.autocast():
                logits = model(image[None].contiguous(memory_format=torch.channels_last)).logits.float()
            # As `post_process_semantic_segmentation` of the image processor does.
            upsampled = F.interpolate(logits, size=labels.shape, mode="bilinear")
            matrix += confusion_matrix(upsampled[0].argmax(0), labels, len(names))
        samples += batch["counts"].sum().to(accelerator.device)
    matrix, samples = accelerator.reduce((matrix, samples), "sum")
    results = {f"eval_{name}": value for name, value in summarize(matrix, names).items()}
    return {**results, "eval_samples": samples.item()}
