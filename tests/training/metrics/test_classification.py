"""Classification metrics against scikit-learn: the sums over batches, and the modules of `evaluate`."""

import evaluate
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rednet.training.metrics.classification import batch_sums, evaluate_classification, sum_over_images
from rednet.training.metrics.counts import calibration_error, per_class_accuracy
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from transformers.modeling_outputs import ImageClassifierOutput


def load_metric(root, name: str) -> evaluate.Metric:
    return evaluate.load(str(root / f"training/metrics/{name}.py"))


def expected_calibration_error(hits: np.ndarray, confidences: np.ndarray) -> float:
    """15 bins; scikit-learn's curve has the accuracy and the mean confidence of those that are not empty."""
    accuracy, confidence = calibration_curve(hits, confidences, n_bins=15)
    images = np.histogram(confidences, 15, (0, 1))[0]
    return np.average(np.abs(accuracy - confidence), weights=images[images > 0])


class Logits(torch.nn.Module):
    """A classifier that returns its input."""

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=pixel_values.flatten(1))


@pytest.mark.parametrize("classes", [2, 10])
def test_sums_over_batches(classes):
    """500 images in batches whose rows with the label -1 do not count."""
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(500, classes)), random.integers(0, classes, 500)
    logits[np.arange(500), labels] += 1
    batches = []
    for part in np.array_split(np.arange(500), 7):
        padded = np.concatenate([logits[part], random.normal(size=(3, classes))])
        pixel_values = torch.tensor(padded, dtype=torch.float32)[:, :, None, None]
        batches.append({"pixel_values": pixel_values, "labels": torch.tensor([*labels[part], -1, -1, -1])})
    sums = sum_over_images(Accelerator(cpu=True), Logits(), batches)
    results = evaluate_classification(Accelerator(cpu=True), Logits(), batches)
    probabilities = torch.tensor(logits).softmax(1).numpy()
    predictions = logits.argmax(1)
    expected = {
        "eval_accuracy": (predictions == labels).mean(),
        "eval_top_5_accuracy": 1 if classes < 5 else top_k_accuracy_score(labels, probabilities, k=5),
        "eval_loss": log_loss(labels, probabilities, labels=range(classes)),
        "eval_samples": 500,
    }
    assert results == pytest.approx(expected, rel=1e-6)
    assert np.array_equal(sums["confusion"], confusion_matrix(labels, predictions))
    error = calibration_error(sums["calibration"], 500)
    assert error == pytest.approx(expected_calibration_error(predictions == labels, probabilities.max(1)), rel=1e-5)


@pytest.mark.parametrize("classes", [3, 12])
def test_several_labels(classes):
    """Predictions among the labels count, also with many equal scores; images without a label are left out."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(4, (300, classes), generator=generator).float()
    labels = torch.randint(-1, classes, (300, 3), generator=generator)
    labels[::10] = -1
    given = [set(row) - {-1} for row in labels.tolist()]
    kept = [n for n, row in enumerate(given) if row]
    ranked = logits[kept].topk(min(classes, 5)).indices.tolist()
    sums = batch_sums(logits, labels)
    first = sum(row[0] in given[n] for n, row in zip(kept, ranked))
    assert sums["hits"].tolist() == [first, sum(bool(given[n] & set(row)) for n, row in zip(kept, ranked))]
    assert 0 < first < len(kept) == sums["images"] < 300 and sums["confusion"].diag().sum() == first
    best = torch.stack([logits[n].log_softmax(0)[list(given[n])].max() for n in kept])
    assert sums["loss"].item() == pytest.approx(-best.double().sum().item(), rel=1e-5)


def test_classes_in_another_order():
    batch = {"pixel_values": torch.eye(3)[:, :, None, None], "labels": torch.tensor([2, 0, 1])}
    sums = sum_over_images(Accelerator(cpu=True), Logits(), [batch], class_order=[1, 2, 0])
    assert torch.equal(sums["confusion"], torch.eye(3, dtype=torch.int64))


def test_equal_scores_are_not_all_hits():
    """A model that scores all classes equally is right for one image in `classes`, and predicts one class."""
    sums = batch_sums(torch.zeros(20, 20), torch.arange(20))
    assert sums["hits"].tolist() == [1, 5] and sums["confusion"].diag().sum() == 1
    assert (sums["confusion"].sum(0) > 0).sum() == 1


def test_a_batch_without_images_adds_nothing():
    sums = batch_sums(torch.randn(4, 7), torch.full((4,), -1))
    assert all(not value.any() for value in sums.values())


def test_training_needs_no_confusion_matrix():
    """That of 100,000 classes would take 80 GB."""
    batch = {"pixel_values": torch.zeros(2, 100_000, 1, 1), "labels": torch.tensor([0, 99_999])}
    results = evaluate_classification(Accelerator(cpu=True), Logits(), [batch])
    assert results["eval_samples"] == 2 and results["eval_loss"] == pytest.approx(np.log(100_000))


@pytest.mark.parametrize("classes", [2, 10])
def test_modules_of_evaluate(root, classes):
    random = np.random.default_rng(0)
    confidences, labels = random.uniform(1 / classes, 1, 500), random.integers(0, classes, 500)
    right = random.uniform(size=500) < confidences**2  # overconfident
    predictions = np.where(right, labels, (labels + random.integers(1, classes, 500)) % classes)
    calibration, confusion = (load_metric(root, name) for name in ("calibration_error", "confusion_matrix"))
    for part in np.array_split(np.arange(500), 3):
        batch = {"predictions": predictions[part].tolist(), "references": labels[part].tolist()}
        calibration.add_batch(**batch, confidences=confidences[part].tolist())
        confusion.add_batch(**batch)
    error = calibration.compute()["calibration_error"]
    assert error == pytest.approx(expected_calibration_error(right, confidences), abs=1e-12) and error > 0.1
    values = confusion.compute(num_classes=classes)
    assert np.array_equal(values["confusion_matrix"], confusion_matrix(labels, predictions))
    assert values["per_class_accuracy"] == pytest.approx(recall_score(labels, predictions, average=None))


def test_calibration_of_certain_predictions(root):
    for predictions, error in (([1, 2], 0), ([2, 1], 1), ([1, 1], 0.5)):
        value = load_metric(root, "calibration_error").compute(
            predictions=predictions, confidences=[1.0, 1.0], references=[1, 2]
        )
        assert value == {"calibration_error": error}


def test_a_class_without_images():
    accuracy = per_class_accuracy(torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 1]]))
    assert accuracy.tolist() == pytest.approx([0.5, np.nan, 1], nan_ok=True)
