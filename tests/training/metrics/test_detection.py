"""Average precision by hand."""

import pytest
import torch
from rednet.training.metrics.detection import average_precision, to_coco

from coco_files import annotations, read_annotations, rectangle


def detection(score: float, x: float, y: float, w: float, h: float, image: int = 0, category: int = 7) -> dict:
    return {"image_id": image, "category_id": category, "score": score, "bbox": [x, y, w, h]}


def test_average_precision_by_hand(tmp_path):
    """Precision 1 up to half of the objects and 2/3 up to all of them, at COCO's 101 recalls, in every threshold."""
    path = annotations(tmp_path, [rectangle(1, 0, 7, 0, 0, 40, 40), rectangle(2, 0, 7, 50, 40, 40, 40)])
    truth = read_annotations(path, masks=False)
    found = [detection(0.9, 0, 0, 40, 40), detection(0.8, 55, 0, 40, 40), detection(0.7, 50, 40, 40, 40)]
    result = average_precision(truth, found, [0], "bbox")
    expected = (51 + 50 * 2 / 3) / 101
    assert result == pytest.approx({"ap": expected, "ap_50": expected, "ap_75": expected, "ap_medium": expected})

    # Half of one object is found with an overlap of 0.775: in six of the ten thresholds from 0.5 to 0.95.
    result = average_precision(truth, [detection(0.9, 0, 0, 40, 31)], [0], "bbox")
    assert result["ap_50"] == pytest.approx(51 / 101) and result["ap"] == pytest.approx(0.6 * 51 / 101)
    assert average_precision(truth, [], [0], "bbox")["ap"] == 0

    # A crowd is neither missed nor found in vain; what is found in a picture without objects is.
    crowd = rectangle(3, 0, 7, 0, 50, 40, 40, iscrowd=1)
    crowd["segmentation"] = {"size": [90, 100], "counts": [9000]}
    truth = read_annotations(annotations(tmp_path, [rectangle(1, 0, 7, 50, 40, 40, 40), crowd], 2), masks=False)
    right, inside = detection(0.7, 50, 40, 40, 40), detection(0.9, 5, 55, 20, 20)
    assert average_precision(truth, [right, inside], [0, 1], "bbox")["ap"] == pytest.approx(1)
    in_vain = detection(0.8, 5, 5, 20, 20, image=1)
    assert average_precision(truth, [right, inside, in_vain], [0, 1], "bbox")["ap"] == pytest.approx(0.5)
    assert average_precision(truth, [right, inside, in_vain], [0], "bbox")["ap"] == pytest.approx(1)


def test_average_precision_of_masks_by_hand(tmp_path):
    """The box is right, and the mask has 3/5 of it: right up to the threshold 0.6."""
    truth = read_annotations(annotations(tmp_path, [rectangle(1, 0, 31, 10, 20, 50, 40)]), masks=True)
    mask = torch.zeros(1, 1, 90, 100)
    mask[:, :, 20:60, 10:40] = 0.9
    mask[:, :, 20:60, 40:60] = 0.4
    output = {"boxes": torch.tensor([[10.0, 20, 60, 60]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.8])}
    detections = to_coco({**output, "masks": mask}, 0, [7, 31])
    assert average_precision(truth, detections, [0], "bbox")["ap"] == pytest.approx(1)
    result = average_precision(truth, detections, [0], "segm")
    assert result["ap"] == pytest.approx(0.3) and result["ap_50"] == pytest.approx(1) and result["ap_75"] == 0
