"""Confusion matrix and accuracy of every class as a metric of `evaluate`.

evaluate.load("training/metrics/confusion_matrix.py")
"""

import datasets
import evaluate
import numpy as np
import torch
from rednet.training.metrics.counts import confusion_matrix, per_class_accuracy


class ConfusionMatrix(evaluate.Metric):
    """
    Args of `compute`:
        predictions: the predicted class of each image.
        references: the true class of each image.
        num_classes: the number of classes.

    Returns of `compute`:
        confusion_matrix: int64 (num_classes, num_classes), a row for each true class, a column for each predicted class.
        per_class_accuracy: the recall of each class, float64 (num_classes,), nan for classes without images.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=self.__doc__, features=features
        )

    def _compute(self, predictions, references, num_classes: int) -> dict[str, np.ndarray]:
        matrix = confusion_matrix(torch.tensor(predictions), torch.tensor(references), num_classes)
        return {"confusion_matrix": matrix.numpy(), "per_class_accuracy": per_class_accuracy(matrix).numpy()}
