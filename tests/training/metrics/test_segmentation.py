"""Intersection over union against scikit-learn."""

import numpy as np
import sklearn.metrics
import torch
from rednet.training.metrics.counts import confusion_matrix
from rednet.training.metrics.segmentation import summarize


def test_agrees_with_scikit_learn():
    """Class 3 is neither there nor predicted, class 2 is only predicted; of two pictures together, not on average."""
    random = np.random.default_rng(0)
    labels = [random.choice([0, 1, 4, 255], (40, 30), p=[0.6, 0.2, 0.1, 0.1]), random.choice([0, 1, 4], (7, 9))]
    predictions = [random.choice([0, 1, 2, 4], part.shape) for part in labels]
    matrix = sum(
        confusion_matrix(torch.from_numpy(found), torch.from_numpy(true), 5)
        for found, true in zip(predictions, labels)
    )
    true, found = (np.concatenate([part.ravel() for part in parts]) for parts in (labels, predictions))
    true, found = true[true != 255], found[true != 255]
    assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(true, found, labels=range(5)))
    results = summarize(matrix, dict(enumerate("abcde")))
    expected = sklearn.metrics.jaccard_score(true, found, labels=[0, 1, 2, 4], average=None)
    assert list(results["per_category_iou"]) == ["a", "b", "c", "e"]
    assert np.allclose(list(results["per_category_iou"].values()), expected, atol=1e-12)
    assert np.isclose(results["mean_iou"], expected.mean())
    assert np.isclose(results["overall_accuracy"], (true == found).mean())
    recalls = [(found[true == n] == n).mean() for n in (0, 1, 4)]
    assert np.isclose(results["mean_accuracy"], np.mean(recalls))
