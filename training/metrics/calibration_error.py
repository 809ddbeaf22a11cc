"""Expected calibration error as a metric of `evaluate`: `evaluate.load("training/metrics/calibration_error.py")`."""

import datasets
import evaluate
import numpy as np


CITATION = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2"
NUM_BINS = 15


class CalibrationError(evaluate.Metric):
    """Takes, for every image, the predicted class, its probability, and the true class.

    The probabilities fall into 15 bins of equal width, ((m - 1) / 15, m / 15]. The error is the mean over the bins,
    each weighted by its images, of |accuracy of the bin - mean probability of the bin|: 0 where of all predictions
    made with probability p the part p is right.
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
        confidences, hits = np.asarray(confidences), np.equal(predictions, references)
        bins = np.digitize(confidences, np.linspace(0, 1, NUM_BINS + 1)[1:-1], right=True)
        # The weight of a bin and the divisor of its means are the same number of images.
        differences = np.bincount(bins, weights=hits - confidences, minlength=NUM_BINS)
        return {"calibration_error": float(np.abs(differences).sum() / len(confidences))}
