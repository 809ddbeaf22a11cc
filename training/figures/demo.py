"""Draws what `demo.py` shows of a run: predictions for test images, and the learning curve."""

import math
from collections.abc import Iterable

import torch
from matplotlib.figure import Figure
from rednet.training.figures.style import look


COLUMNS = 8


@look
def draw_demo(
    rows: Iterable[dict], probabilities: torch.Tensor, names: list[str], log: list[dict], results: dict
) -> Figure:
    """
    Args:
        rows: test images and their labels.
        probabilities: (images, classes).
        names: of the classes.
        log, results: log.jsonl and results.json of the run.
    """
    figure = Figure(figsize=(15, 9.5))
    images, curves = figure.subfigures(2, 1, height_ratios=[2, 1], squeeze=False).flat
    images.suptitle("Test images: predicted class, and the true class in brackets if it differs")
    all_axes = images.subplots(math.ceil(len(probabilities) / COLUMNS), COLUMNS)
    for axes in all_axes.flat:
        axes.axis("off")
    for axes, row, probability in zip(all_axes.flat, rows, probabilities):
        best = int(probability.argmax())
        right = best == row["label"]
        axes.imshow(row["image"], cmap="gray_r")
        label = f"{names[best]} {100 * probability[best]:.0f} %" + ("" if right else f"\n({names[row['label']]})")
        axes.set_title(label, fontsize=9, color="tab:green" if right else "tab:red")

    loss_axes, accuracy_axes = curves.subplots(1, 2)
    losses = [entry for entry in log if "loss" in entry]
    loss_axes.plot([e["step"] for e in losses], [e["loss"] for e in losses])
    loss_axes.set(xlabel="step", ylabel="training loss", title="Learning curve")
    evaluations = [entry for entry in log if "eval_accuracy" in entry]
    accuracies = [100 * e["eval_accuracy"] for e in evaluations]
    accuracy_axes.plot([e["step"] for e in evaluations], accuracies, marker="o", color="tab:orange")
    accuracy_axes.set(
        xlabel="step",
        ylabel="test top-1 (%)",
        title=f"{100 * results['eval_accuracy']:.2f} % at the end, {results['parameters']:,} parameters",
    )
    return figure
