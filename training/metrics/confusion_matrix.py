"""Confusion matrix and accuracy of every class, a metric of `evaluate`: `evaluate.load("training/metrics/...py")`."""

import datasets
import evaluate
import numpy as np


class ConfusionMatrix(evaluate.Metric):
    """Takes, for every image, the predicted and the true class, and at the end the number of classes.

    `confusion_matrix` has a row for every true class and a column for every predicted one. `per_class_accuracy` is the
    part of a class's images that was recognised (its recall), nan where it has no images.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=self.__doc__, features=features
        )

    def _compute(self, predictions, references, num_classes: int) -> dict[str, np.ndarray]:
        places = np.asarray(references) * num_classes + np.asarray(predictions)
        matrix = np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)
        images = matrix.sum(1)
        accuracy = np.divide(matrix.diagonal(), images, out=np.full(num_classes, np.nan), where=images > 0)
        return {"confusion_matrix": matrix, "per_class_accuracy": accuracy}
