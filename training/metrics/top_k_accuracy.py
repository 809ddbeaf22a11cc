"""Top-1 and top-5 accuracy as a metric of `evaluate`: `evaluate.load("training/metrics/top_k_accuracy.py")`."""

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """Takes, for every image, the classes in falling order of their score (at least one), and its true class."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
        )
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description=self.__doc__, features=features
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {"accuracy": float(hits[:, 0].mean()), "top_5_accuracy": float(hits[:, :5].any(1).mean())}
