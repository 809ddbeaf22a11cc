"""How well a model detects: COCO's average precision of boxes and masks, by pycocotools."""

import io
from contextlib import redirect_stdout

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


NAMES = ["ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large"]


def average_precision(coco: COCO, detections: list[dict], image_ids: list[int], kind: str) -> dict[str, float]:
    """COCO's six, from 0 to 1, of at most 100 detections in each picture; without those of sizes that no object has.

    Args:
        detections: in COCO's format of results, all of `image_ids`.
        kind: `bbox`, or `segm` for the masks.
    """
    if kind == "segm":  # with a box, COCO would take its area for that of the mask
        detections = [{key: value for key, value in entry.items() if key != "bbox"} for entry in detections]
    with redirect_stdout(io.StringIO()):
        if detections:
            found = coco.loadRes(detections)
        else:  # which loadRes does not take
            found = COCO()
            found.dataset = {**coco.dataset, "annotations": []}
            found.createIndex()
        evaluation = COCOeval(coco, found, kind)
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats) if value >= 0}


def to_coco(output: dict[str, torch.Tensor], image_id: int, category_ids: list[int]) -> list[dict]:
    """What a detector of torchvision found in a picture, in COCO's format of results. Label n is `category_ids[n-1]`."""
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
    """`average_precision` on all pictures of a loader of `EvaluationPictures`, as eval_box_ap, eval_mask_ap ..."""
    model.eval()
    detections, category_ids = [], sorted(coco.cats)
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not accelerator.is_local_main_process):
        images = [image.to(accelerator.device, non_blocking=True) / 255 for image in batch["images"]]
        with accelerator.autocast():
            outputs = model(images)
        for output, image_id, counts in zip(outputs, batch["ids"].tolist(), batch["counts"].tolist()):
            if counts:
                detections += to_coco(output, image_id, category_ids)
    detections, results = gather_object(detections), {}
    image_ids = loader.dataset.images["id"]
    for kind in kinds:
        found = average_precision(coco, detections, image_ids, kind)
        results |= {f"eval_{'box' if kind == 'bbox' else 'mask'}_{name}": value for name, value in found.items()}
    return {**results, "eval_samples": len(image_ids)}
