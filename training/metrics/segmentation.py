"""How well a model segments: intersection over union of each class, over the pixels of all pictures together."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


def count_pixels(predictions: Tensor, labels: Tensor, num_labels: int) -> Tensor:
    """Confusion matrix (num_labels, num_labels): true classes in rows, predicted ones in columns.

    Pixels whose label is no class are left out.
    """
    labeled = (labels >= 0) & (labels < num_labels)
    cells = num_labels * labels[labeled] + predictions[labeled]
    return torch.bincount(cells, minlength=num_labels**2).view(num_labels, num_labels)


def summarize(matrix: Tensor, names: dict[int, str]) -> dict:
    """Parts of 1, from a confusion matrix. Classes that neither were there nor were predicted have no part in means."""
    matrix = matrix.double().cpu()
    hits, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou, accuracy = hits / (true + predicted - hits), hits / true
    return {
        "mean_iou": iou.nanmean().item(),
        "overall_accuracy": (hits.sum() / matrix.sum()).item(),
        "mean_accuracy": accuracy.nanmean().item(),
        "per_category_iou": {names[n]: value for n, value in enumerate(iou.tolist()) if value == value},
    }


@torch.no_grad()
def evaluate_segmentation(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, names: dict[int, str]
) -> dict:
    """`summarize` of a loader of `EvaluationPairs`: whole pictures, and logits upsampled to the size of their masks."""
    model.eval()
    matrix = torch.zeros(len(names), len(names), dtype=torch.int64, device=accelerator.device)
    samples = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        for image, labels in zip(batch["pixel_values"], batch["labels"]):
            image, labels = (tensor.to(accelerator.device, non_blocking=True) for tensor in (image, labels))
            with accelerator.autocast():
                logits = model(image[None].contiguous(memory_format=torch.channels_last)).logits.float()
            # As `post_process_semantic_segmentation` of the image processor does it.
            upsampled = F.interpolate(logits, size=labels.shape, mode="bilinear")
            matrix += count_pixels(upsampled[0].argmax(0), labels, len(names))
        samples += batch["counts"].sum().to(accelerator.device)
    matrix, samples = accelerator.reduce((matrix, samples), "sum")
    results = {f"eval_{name}": value for name, value in summarize(matrix, names).items()}
    return {**results, "eval_samples": samples.item()}
