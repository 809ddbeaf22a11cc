"""How well a model classifies."""

from collections.abc import Iterator
from pathlib import Path

import evaluate
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor


def load_metric(name: str) -> evaluate.Metric:
    """One of the folder `metrics`: those of the Hub need the network."""
    return evaluate.load(str(Path(__file__).with_name(f"{name}.py")))


@torch.no_grad()
def predict(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, classes), float32, and labels (n,) of every batch of an `evaluation_loader`, from all processes."""
    model.eval()
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        images = batch["pixel_values"].to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last)).logits.float()
        logits, labels = accelerator.gather((logits, batch["labels"].to(accelerator.device)))
        yield logits[labels >= 0], labels[labels >= 0]  # the others fill up the last batches


def image_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width of the pictures that an image processor makes."""
    return tuple(processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"].shape[2:])


def evaluate_model(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> dict:
    """Top-1 and top-5 accuracy and the mean cross-entropy over all images of an `evaluation_loader`."""
    metric = load_metric("top_k_accuracy")
    losses = []
    for logits, labels in predict(accelerator, model, loader):
        metric.add_batch(predictions=logits.topk(min(5, logits.shape[1])).indices.tolist(), references=labels.tolist())
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    losses = torch.cat(losses)
    results = {f"eval_{name}": value for name, value in metric.compute().items()}
    return {**results, "eval_loss": losses.mean().item(), "eval_samples": len(losses)}
