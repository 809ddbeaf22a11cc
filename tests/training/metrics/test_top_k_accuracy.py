"""The metric module top_k_accuracy."""

import evaluate
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score


def test_metric_agrees_with_scikit_learn(root):
    scores = np.random.default_rng(0).normal(size=(200, 10))
    labels = np.random.default_rng(1).integers(0, 10, 200)
    metric = evaluate.load(str(root / "training/metrics/top_k_accuracy.py"))
    ranked = np.argsort(-scores, axis=1)[:, :5]
    for part in np.array_split(np.arange(200), 3):
        metric.add_batch(predictions=ranked[part].tolist(), references=labels[part].tolist())
    values = metric.compute()
    assert values["accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert values["top_5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
