"""Expected calibration error as a metric of `evaluate`: `evaluate.load("training/metrics/calibration_error.py")`."""

import datasets
import evaluate
import torch
from rednet.training.metrics.counts import calibration_error, calibration_sums


CITATION = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2"


class CalibrationError(evaluate.Metric):
    """
    The mean over 15 bins of equal width, ((m - 1) / 15, m / 15], of |accuracy - mean confidence|, each weighted by its
    number of images. It is 0 if, of all predictions with probability p, a fraction p is right.

    Args of `compute`:
        predictions: the predicted class of each image.
        confidences: the probability of the predicted class.
        references: the true class of each image.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {
                "predictions": datasets.Value("int64"),
                "confidences": datasets.Value("float64"),
                "references": datasets.Value("int64"),
            }
        )
        return evaluate.MetricInfo(
            description=__doc__, citation=CITATION, inputs_description=self.__doc__, features=features
        )

    def _compute(self, predictions, confidences, references) -> dict[str, float]:
        sums = calibration_sums(
            torch.tensor(predictions), torch.tensor(confidences, dtype=torch.float64), torch.tensor(references)
        )
        return {"calibration_error": calibration_error(sums, len(references))}
