"""Evaluates detection: COCO's average precision of boxes and masks, by pycocotools."""

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


NAMES = ["ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large"]


def average_precision(coco: COCO, detections: list[dict], image_ids: list[int], kind: str) -> dict[str, float]:
    """COCO's six metrics, from 0 to 1, of at most 100 detections in each image. Sizes without objects are left out.

    Args:
        coco: the annotations.
        detections: in COCO's format of results.
        image_ids: the images to evaluate on.
        kind: `bbox`, or `segm` for masks.
    """
    if kind == "segm":  # COCO would use the area of the box instead of that of the mask
        detections = [{key: value for key, value in entry.items() if key != "bbox"} for entry in detections]
    with redirect_stdout(io.StringIO()):
        if detections:
            results = coco.loadRes(detections)
        else:  # loadRes does not support an empty list
            results = COCO()
            results.dataset = {**coco.dataset, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(coco, results, kind)
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats) if value >= 0}


def to_coco(output: dict[str, torch.Tensor], image_id: int, category_ids: list[int]) -> list[dict]:
    """Converts the output of a torchvision detector for one image to COCO's format of results.

    Args:
        category_ids: label n is `category_ids[n - 1]`.
    """
    output = {name: value.cpu() for name, value in output.items()}
    corners, sizes = output["boxes"][:, :2], output["boxes"][:, 2:] - output["boxes"][:, :2]
    boxes = torch.cat([corners, sizes], dim=1).tolist()
    detections = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "score": score, "bbox": box}
        for label, score, box in zip(output["labels"].tolist(), output["scores"].tolist(), boxes)
    ]
    if "masks" in output:
        for detection, mask in zip(detections, output["masks"]):
            detection["segmentation"] = run_lengths.encode(np.asfortranarray(mask[0].numpy() > 0.5, np.uint8))
    return detections


@torch.no_grad()
def evaluate_detection(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, coco: COCO, kinds: list[str]
) -> dict:
    """`average_precision` on all images of a loader of `EvaluationPictures`, as eval_box_ap, eval_mask_ap ...

    The main process evaluates and broadcasts the results: the detections of all processes would not fit everywhere.
    """
    model.eval()
    detections: list[dict] = []
    category_ids = sorted(coco.cats)
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        images = [image.to(accelerator.device, non_blocking=True) / 255 for image in batch["images"]]
        with accelerator.autocast():
            outputs = model(images)
        for output, image_id, counts in zip(outputs, batch["ids"].tolist(), batch["counts"].tolist()):
            if counts:
                detections += to_coco(output, image_id, category_ids)
    detections = gather_on_main_process(accelerator, detections)
    results: dict[str, float] = {}
    dataset: Any = loader.dataset
    image_ids = dataset.images["id"]
    if accelerator.is_main_process:
        for kind in kinds:
            for name, value in average_precision(coco, detections, image_ids, kind).items():
                results[f"eval_{'box' if kind == 'bbox' else 'mask'}_{name}"] = value
    (results,) = broadcast_object_list([results])
    return {**results, "eval_samples": len(image_ids)}


def gather_on_main_process(accelerator: Accelerator, items: list[dict]) -> list[dict]:
    """The items of all processes in the order of the processes, on the main process; an empty list on the others."""
    if accelerator.num_processes == 1:
        return items
    gathered: list[Any] = [[]] * accelerator.num_processes
    torch.distributed.gather_object(items, gathered if accelerator.is_main_process else None)
    return [item for part in gathered for item in part]
