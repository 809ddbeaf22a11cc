"""Top-1 and top-5 accuracy as a metric of `evaluate`: `evaluate.load("training/metrics/top_k_accuracy.py")`."""

import datasets
import evaluate
import torch
from rednet.training.metrics.counts import top_k_accuracy, top_k_hits


class TopKAccuracy(evaluate.Metric):
    """
    Args of `compute`:
        predictions: the classes of each image in descending order of their scores, at least one.
        references: the true class of each image.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
        )
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=self.__doc__, features=features
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return top_k_accuracy(top_k_hits(torch.tensor(predictions), torch.tensor(references)), len(references))
